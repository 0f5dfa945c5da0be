"""The reference of an opened checkpoint, by its facts."""

from __future__ import annotations

from functools import partial

from hotstart.engines.checkpoints.checkpoint import Checkpoint, llama_facts, read_weight
from hotstart.engines.checkpoints.mpt_config import MptFacts
from hotstart.engines.checkpoints.upstream_config import UpstreamFacts
from hotstart.engines.errors import Reason, Terminal
from hotstart.engines.reference.llama import LlamaReference
from hotstart.engines.reference.mpt import MptReference
from hotstart.engines.reference.network import Reference
from hotstart.engines.reference.transformers_network import TransformersReference


def make_reference(checkpoint: Checkpoint) -> Reference:
    """What this checkpoint computes; weights are read as they are needed.

    The reference itself raises Terminal (CheckpointCorrupt) where a weight is NaN or infinite.

    Raises:
        Terminal: UnsupportedArchitecture, nothing here computes the network.
    """
    facts, weight = checkpoint.facts, partial(read_weight, checkpoint)
    if isinstance(facts, MptFacts):
        return MptReference(facts, weight)
    if isinstance(facts, UpstreamFacts):
        if checkpoint.folder is None:
            raise Terminal(
                Reason.UNSUPPORTED_ARCHITECTURE,
                f"What the {facts.architecture} should compute cannot be told from a checkpoint of the format "
                f"{checkpoint.format}, so its engine cannot be verified: give the original checkpoint.",
            )
        return TransformersReference(checkpoint.folder, facts.architecture)
    return LlamaReference(llama_facts(checkpoint), weight)
