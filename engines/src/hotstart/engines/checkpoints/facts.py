"""config.json -> facts of the network, by the table of architectures. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hotstart.engines.architectures import require_architecture
from hotstart.engines.checkpoints.checkpoint import Facts
from hotstart.engines.checkpoints.llama_config import make_facts
from hotstart.engines.checkpoints.mpt_config import is_mpt, make_mpt_facts
from hotstart.engines.checkpoints.upstream_config import make_upstream_facts


def make_checkpoint_facts(config: Mapping[str, Any]) -> Facts:
    """The facts in a Hugging Face config.json of any network that is known.

    Raises:
        Terminal: UnsupportedArchitecture, or CheckpointCorrupt where a field is missing or nonsense.
    """
    if is_mpt(config):
        return make_mpt_facts(config)
    architecture = require_architecture(architecture_name(config))
    return make_facts(config) if architecture.family == "llama" else make_upstream_facts(config, architecture)


def architecture_name(config: Mapping[str, Any]) -> str:
    """The first of ``architectures``, else the model's type, else "none"."""
    found = config.get("architectures") or [config.get("model_type", "none")]
    return str(found[0] if isinstance(found, list) and found else found)
