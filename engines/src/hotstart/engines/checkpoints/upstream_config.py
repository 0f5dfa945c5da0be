"""config.json of the networks that TensorRT-LLM's own converters read -> ``UpstreamFacts``. Pure.

Hotstart never computes these networks: it needs their sizes, for the memory plan and the serving limits. The families
name the same size in different ways; the names are those of transformers' configuration classes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from hotstart.engines.architectures import Architecture
from hotstart.engines.errors import Reason, Terminal

MOST_LAYERS = 1000
_NAMES = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "n_embed", "d_model"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads"),
    "intermediate": ("intermediate_size", "n_inner", "ffn_hidden_size"),
    "head_dim": ("head_dim", "head_size"),
    "vocab": ("vocab_size",),
    "context": ("max_position_embeddings", "n_positions", "seq_length"),
}
#: Families whose configuration ties input and output embeddings where it says nothing.
_TIED = frozenset({"gemma", "gpt", "falcon", "bloom"})
#: Networks whose configuration shares keys and values among all queries where it says nothing.
_MULTI_QUERY = frozenset({"FalconForCausalLM", "GPTBigCodeForCausalLM"})
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


FactsT = TypeVar("FactsT")


@dataclass(frozen=True)
class UpstreamFacts:
    """Sizes of a network that an upstream converter reads. Lengths are in tokens.

    ``context_length`` is 0 where the config does not say it; ``parameters`` is 0 as long as no weights were listed.
    """

    architecture: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context_length: int
    tied_embeddings: bool = False
    parameters: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON with the names that status and manifest use."""
        names = {"kv_heads": "kvHeads", "head_dim": "headDim", "context_length": "contextLength"}
        names |= {"tied_embeddings": "tiedEmbeddings"}
        return {names.get(name, name): value for name, value in asdict(self).items() if value not in (None, False)}


def make_upstream_facts(config: Mapping[str, Any], architecture: Architecture) -> UpstreamFacts:
    """The facts in a Hugging Face config.json.

    Raises:
        Terminal: UnsupportedArchitecture, the weights are quantized; CheckpointCorrupt, a field is missing or nonsense.
    """
    if config.get("quantization_config"):
        raise Terminal(
            Reason.UNSUPPORTED_ARCHITECTURE,
            "The checkpoint's weights are already quantized: that is not supported; upload the unquantized checkpoint.",
        )
    hidden, heads = _size(config, "hidden"), _size(config, "heads")
    facts = UpstreamFacts(
        architecture=architecture.name,
        layers=_size(config, "layers"),
        hidden=hidden,
        intermediate=_size(config, "intermediate", 4 * hidden),
        heads=heads,
        kv_heads=_kv_heads(config, architecture, heads),
        head_dim=_size(config, "head_dim", hidden // heads),
        vocab=_size(config, "vocab"),
        context_length=_size(config, "context", 2048),
        tied_embeddings=bool(config.get("tie_word_embeddings", architecture.family in _TIED)),
    )
    if facts.layers > MOST_LAYERS or facts.heads % facts.kv_heads:
        raise Terminal(
            Reason.CHECKPOINT_CORRUPT,
            f"config.json has {facts.layers} layers, {facts.heads} attention heads and {facts.kv_heads} key-value "
            "heads: no network has; upload the checkpoint again.",
        )
    return facts


def count_layers(names: Iterable[str]) -> int:
    """How many layers the names of tensors speak of, 0 to the last one that is there without a gap."""
    found = {int(match[1]) for name in names if (match := _LAYER.search(name))}
    return next(number for number in range(len(found) + 1) if number not in found)


def count_upstream(facts: FactsT, shapes: Callable[[], Mapping[str, tuple[int, ...]]]) -> FactsT:
    """Facts of an upstream network with the number of its weights; other facts as they are."""
    if not isinstance(facts, UpstreamFacts):
        return facts
    return replace(facts, parameters=sum(math.prod(shape) for shape in shapes().values()))


def _kv_heads(config: Mapping[str, Any], architecture: Architecture, heads: int) -> int:
    """Key-value heads: one for all queries with ``multi_query``, else the number that is given, or as many as queries.

    Falcon's number counts with ``new_decoder_architecture`` and without ``multi_query`` only; transformers writes one
    all the same.
    """
    multi_query = config.get("multi_query", architecture.name in _MULTI_QUERY)
    shared = bool(multi_query) and not config.get("new_decoder_architecture")
    if shared and architecture.family == "falcon":
        return 1
    return _size(config, "kv_heads", 1 if shared else heads)


def _size(config: Mapping[str, Any], what: str, default: int | None = None) -> int:
    name = next((name for name in _NAMES[what] if config.get(name) is not None), _NAMES[what][0])
    value = config.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise Terminal(
            Reason.CHECKPOINT_CORRUPT, f"config.json: {name} is {value!r}, it must be a whole number above 0."
        )
    return value
