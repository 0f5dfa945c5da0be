"""The reference of an opened checkpoint, by its facts."""

from __future__ import annotations

from functools import partial
from typing import Any

from hotstart.engines.checkpoints.checkpoint import Checkpoint, llama_facts, read_weight
from hotstart.engines.checkpoints.mpt_config import MptFacts
from hotstart.engines.checkpoints.trtllm_folder import check_verifiable
from hotstart.engines.checkpoints.upstream_config import UpstreamFacts
from hotstart.engines.reference.llama import LlamaReference
from hotstart.engines.reference.mpt import MptReference
from hotstart.engines.reference.network import Reference
from hotstart.engines.reference.transformers_network import TransformersReference
from hotstart.engines.reference.trtllm_mpt import TrtllmMptReference


def make_reference(checkpoint: Checkpoint) -> Reference:
    """What this checkpoint computes; weights are read as they are needed.

    The reference itself raises Terminal (CheckpointCorrupt) where a weight is NaN or infinite.

    Raises:
        Terminal: UnsupportedArchitecture, nothing here computes the network.
    """
    facts, weight = checkpoint.facts, partial(read_weight, checkpoint)
    if isinstance(facts, MptFacts):
        return MptReference(facts, weight)
    if checkpoint.format == "tensorrt_llm":
        return _make_trtllm_reference(checkpoint)
    if isinstance(facts, UpstreamFacts) and checkpoint.folder is not None:
        return TransformersReference(checkpoint.folder, facts.architecture)
    return LlamaReference(llama_facts(checkpoint), weight)


def _make_trtllm_reference(checkpoint: Any) -> Reference:
    """Of a ``TrtllmFolder``, or of what stands for one."""
    check_verifiable(checkpoint.facts.architecture, checkpoint.layout.quantization)
    return TrtllmMptReference(checkpoint.config, partial(read_weight, checkpoint))
