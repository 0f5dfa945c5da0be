"""config.json of any family that we convert ourselves -> its facts. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hotstart.engines.checkpoints.checkpoint import Facts
from hotstart.engines.checkpoints.llama_config import make_facts
from hotstart.engines.checkpoints.mpt_config import is_mpt, make_mpt_facts


def make_checkpoint_facts(config: Mapping[str, Any]) -> Facts:
    """The facts in a Hugging Face config.json, LLaMA-like or MPT.

    Raises:
        Terminal: UnsupportedArchitecture, or CheckpointCorrupt where a field is missing or nonsense.
    """
    return make_mpt_facts(config) if is_mpt(config) else make_facts(config)
