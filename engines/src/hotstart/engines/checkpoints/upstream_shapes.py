"""The shapes that the weights of upstream's networks have, by the config. Pure.

transformers' classes for these families share their names for the parts of a layer, or have names of their own, so one
table by the end of a tensor's name serves all of them. What no row names (positions, the norms of single heads) is not
compared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from hotstart.engines.checkpoints.upstream_config import UpstreamFacts, count_layers
from hotstart.engines.errors import Reason, Terminal

#: End of a linear layer's name -> the sizes of its output and input.
_LINEAR: dict[str, tuple[str, str]] = {
    **dict.fromkeys(
        ("embed_tokens", "wte", "word_embeddings", "embed_in", "lm_head", "embed_out"), ("vocab", "hidden")
    ),
    "q_proj": ("queries", "hidden"),
    **dict.fromkeys(("k_proj", "v_proj"), ("keys", "hidden")),
    **dict.fromkeys(("qkv_proj", "query_key_value", "attn.c_attn"), ("qkv", "hidden")),
    **dict.fromkeys(("o_proj", "attn.out_proj", "attn.c_proj", "dense"), ("hidden", "queries")),
    **dict.fromkeys(("gate_proj", "up_proj", "mlp.c_fc", "fc1", "fc_in", "dense_h_to_4h"), ("inner", "hidden")),
    **dict.fromkeys(("down_proj", "mlp.c_proj", "fc2", "fc_out", "dense_4h_to_h"), ("hidden", "inner")),
    "gate_up_proj": ("gate and up", "hidden"),
}
_NORM = re.compile(r"^(?![qk]_)(?:\w*norm|ln_\w+)$")


def check_upstream_shapes(facts: UpstreamFacts, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """An embedding of the vocabulary, as many layers as the config says, and each part of them of its size.

    Raises:
        Terminal: CheckpointCorrupt, config and weights are of different models.
    """
    embedding = (facts.vocab, facts.hidden)
    if embedding not in shapes.values():
        raise _differ(f"No tensor has the shape {list(embedding)} of the config's embedding")
    layers = count_layers(shapes)
    if layers != facts.layers:
        raise Terminal(
            Reason.CHECKPOINT_CORRUPT,
            f"The weights have {layers} layers, the config says {facts.layers}: upload the whole checkpoint again.",
        )
    for name, shape in shapes.items():
        expected = expected_upstream_shape(facts, name)
        if expected is not None and tuple(shape) != expected:
            raise _differ(f"The tensor {name} has shape {list(shape)}, the config says {list(expected)}")


def expected_upstream_shape(facts: UpstreamFacts, name: str) -> tuple[int, ...] | None:
    """The shape of a tensor by its name; None where nothing is known of it."""
    module, _, kind = name.rpartition(".")
    if kind not in ("weight", "bias"):
        return None
    parts = module.rsplit(".", 2)
    if _NORM.match(parts[-1]):
        return (facts.hidden,)
    row = _LINEAR.get(".".join(parts[-2:])) or _LINEAR.get(parts[-1])
    if row is None:
        return None
    sizes = _sizes(facts)
    return (sizes[row[0]], sizes[row[1]]) if kind == "weight" else (sizes[row[0]],)


def _sizes(facts: UpstreamFacts) -> dict[str, int]:
    queries, keys = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    return {
        "vocab": facts.vocab,
        "hidden": facts.hidden,
        "inner": facts.intermediate,
        "gate and up": 2 * facts.intermediate,
        "queries": queries,
        "keys": keys,
        "qkv": queries + 2 * keys,
    }


def _differ(what: str) -> Terminal:
    return Terminal(Reason.CHECKPOINT_CORRUPT, f"{what}: config and weights are of different models.")
