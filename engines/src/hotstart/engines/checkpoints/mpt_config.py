"""config.json of MPT (``model_type: mpt``, as replit-code-v1_5-3b has it) -> ``MptFacts``. Pure.

The network: pre-norm blocks of LayerNorm, attention with ALiBi, LayerNorm, and a GELU (erf) layer; logits come from the
embedding, which is tied. Whatever else llm-foundry's config may ask for is refused by its name; what only matters
while training (dropout, ``attn_impl``, ``embedding_fraction``, ``attn_uses_sequence_id``, ``init_config``) is not read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hotstart.engines.errors import Reason, Terminal

ARCHITECTURES = ("MPTForCausalLM", "MptForCausalLM")
MODEL_TYPE = "mpt"
MOST_LAYERS = 1000

EMBEDDINGS = "transformer.wte.weight"
FINAL_NORM = "transformer.norm_f.weight"

_ATTENTIONS = ("multihead_attention", "grouped_query_attention", "multiquery_attention")
_NORMS = ("low_precision_layernorm", "layernorm")
_TRAINING_ONLY = frozenset({"attn_impl", "attn_pdrop", "attn_uses_sequence_id"})
_ATTENTION_READ = frozenset({"attn_type", "alibi", "alibi_bias_max", "kv_n_heads", "clip_qkv", "softmax_scale"})
_OFF: tuple[Any, ...] = (None, False, 0, -1, "", [], {})


@dataclass(frozen=True)
class MptFacts:
    """Sizes and constants of an MPT network. Lengths are in tokens; embeddings are tied."""

    architecture: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context_length: int
    alibi_bias_max: float = 8.0
    clip_qkv: float | None = None  # queries, keys and values are clipped to ±this
    bias: bool = False  # every linear layer and every norm has one, or none has
    norm_epsilon: float = 1e-5

    def to_json(self) -> dict[str, Any]:
        """Plain JSON with the names that status, manifest and engine.json use."""
        names = {"kv_heads": "kvHeads", "head_dim": "headDim", "context_length": "contextLength"}
        names |= {"alibi_bias_max": "alibiBiasMax", "clip_qkv": "clipQkv", "norm_epsilon": "normEpsilon"}
        return {names.get(name, name): value for name, value in asdict(self).items() if value not in (None, False)}


def is_mpt(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of an MPT network."""
    architectures = config.get("architectures")
    named = architectures[0] if isinstance(architectures, list) and architectures else None
    return named in ARCHITECTURES or (named is None and config.get("model_type") == MODEL_TYPE)


def make_mpt_facts(config: Mapping[str, Any]) -> MptFacts:
    """The facts in an MPT's config.json.

    Raises:
        Terminal: UnsupportedArchitecture names an option that is not done; CheckpointCorrupt, a field is nonsense.
    """
    attention = _mapping(config, "attn_config")
    hidden, heads = _width(config), _positive(config, "n_heads")
    if hidden % heads:
        raise _corrupt(f"d_model is {hidden} and n_heads {heads}: the first must be a multiple of the second")
    refuse_network(config)
    refuse_attention(attention, hidden // heads)
    return MptFacts(
        architecture="MPTForCausalLM",
        layers=_layers(config),
        hidden=hidden,
        intermediate=_intermediate(config, hidden),
        heads=heads,
        kv_heads=_kv_heads(attention, heads),
        head_dim=hidden // heads,
        vocab=_positive(config, "vocab_size"),
        context_length=_positive(config, "max_seq_len"),
        alibi_bias_max=_number(attention, "alibi_bias_max", 8.0),
        clip_qkv=_number(attention, "clip_qkv", 1.0) if attention.get("clip_qkv") else None,
        bias=not _flag(config, "no_bias", False),
        norm_epsilon=_epsilon(config),
    )


def expected_mpt_shapes(facts: MptFacts) -> dict[str, tuple[int, ...]]:
    """Every tensor that an MPT network needs, rows of a linear layer first (output, input). Pure."""
    hidden, kv_width = facts.hidden, facts.kv_heads * facts.head_dim
    linear = {"attn.Wqkv": (hidden + 2 * kv_width, hidden), "attn.out_proj": (hidden, hidden)}
    linear |= {"ffn.up_proj": (facts.intermediate, hidden), "ffn.down_proj": (hidden, facts.intermediate)}
    parts: dict[str, tuple[int, ...]] = {"norm_1": (hidden,), "norm_2": (hidden,), **linear}
    weights = {f"transformer.blocks.{i}.{name}": shape for i in range(facts.layers) for name, shape in parts.items()}
    weights["transformer.norm_f"] = (hidden,)
    shapes: dict[str, tuple[int, ...]] = {EMBEDDINGS: (facts.vocab, hidden)}
    for name, shape in weights.items():
        shapes[f"{name}.weight"] = shape
        if facts.bias:
            shapes[f"{name}.bias"] = shape[:1]
    return shapes


def refuse_attention(attention: Mapping[str, Any], head_dim: int) -> None:
    """Raises Terminal for what ``attn_config`` asks for beyond ALiBi, shared key-value heads and clipping."""
    if not _flag(attention, "alibi", False):
        raise _unsupported("attn_config.alibi false (learned position embeddings or none); known is ALiBi")
    kind = attention.get("attn_type", "multihead_attention")
    if kind not in _ATTENTIONS:
        raise _unsupported(f"attn_config.attn_type {kind!r}; known are {', '.join(_ATTENTIONS)}")
    scale = attention.get("softmax_scale")
    if scale is not None and not math.isclose(_number(attention, "softmax_scale", 1.0), head_dim**-0.5, rel_tol=1e-6):
        raise _unsupported(f"attn_config.softmax_scale {scale}; known is 1/sqrt(head width) = {head_dim**-0.5:.6g}")
    if attention.get("fused_qkv", True) is not True:
        raise _unsupported("attn_config.fused_qkv false; known is one Wqkv")
    read = _ATTENTION_READ | _TRAINING_ONLY | {"fused_qkv"}
    if not attention.get("rope"):
        read |= {name for name in attention if name.startswith("rope_")}
    for name in sorted(attention.keys() - read):
        if attention[name] not in _OFF:
            raise _unsupported(f"attn_config.{name} {attention[name]!r}")


def refuse_network(config: Mapping[str, Any]) -> None:
    """Raises Terminal for what the rest of the config asks for and nobody here does."""
    norm = str(config.get("norm_type", _NORMS[0])).lower()
    if norm not in _NORMS:
        raise _unsupported(f"norm_type {norm!r}; known are {', '.join(_NORMS)}")
    if not _flag(config, "tie_word_embeddings", True):
        raise _unsupported("tie_word_embeddings false; known are tied embeddings")
    if config.get("logit_scale") not in (None, 1, 1.0):
        raise _unsupported(f"logit_scale {config['logit_scale']!r}")
    if config.get("fc_type", "torch") not in ("torch", {"name": "torch"}):
        raise _unsupported(f"fc_type {config['fc_type']!r}; known is torch")
    for name in ("final_logit_softcapping", "block_overrides", "quantization_config"):
        if config.get(name) not in _OFF:
            raise _unsupported(f"{name} {config[name]!r}")
    _refuse_ffn(_mapping(config, "ffn_config"))


def _refuse_ffn(ffn: Mapping[str, Any]) -> None:
    known: dict[str, tuple[Any, ...]] = {
        "ffn_type": ("mptmlp",),
        "fc_type": ("torch", {"name": "torch"}),
        "ffn_act_fn": ({"name": "gelu"}, {"name": "gelu", "approximate": "none"}),
    }
    for name, value in ffn.items():
        if value not in _OFF and name != "ffn_hidden_size" and value not in known.get(name, ()):
            raise _unsupported(f"ffn_config.{name} {value!r}")


def _kv_heads(attention: Mapping[str, Any], heads: int) -> int:
    kind = attention.get("attn_type", "multihead_attention")
    default = {"multihead_attention": heads, "multiquery_attention": 1}.get(kind)
    kv_heads = _positive(attention, "kv_n_heads", default)
    if default is not None and kv_heads != default:
        raise _corrupt(f"attn_config.kv_n_heads is {kv_heads}, {kind} has {default}")
    if heads % kv_heads:
        raise _corrupt(f"n_heads is {heads} and attn_config.kv_n_heads {kv_heads}: the first must be a multiple")
    return kv_heads


def _intermediate(config: Mapping[str, Any], hidden: int) -> int:
    explicit = _mapping(config, "ffn_config").get("ffn_hidden_size")
    if explicit is not None:
        return _positive(_mapping(config, "ffn_config"), "ffn_hidden_size")
    return int(hidden * _number(config, "expansion_ratio", 4.0))


def _width(config: Mapping[str, Any]) -> int:
    """``d_model``; a few checkpoints call it ``hidden_size``."""
    return _positive(config, "d_model" if "d_model" in config else "hidden_size")


def _layers(config: Mapping[str, Any]) -> int:
    layers = _positive(config, "n_layers")
    if layers > MOST_LAYERS:
        raise _corrupt(f"n_layers is {layers}, more than any network has")
    return layers


def _epsilon(config: Mapping[str, Any]) -> float:
    """llm-foundry's ``norm_eps``, transformers' ``layer_norm_epsilon``; PyTorch's default is 1e-5."""
    return _number(config, "norm_eps" if "norm_eps" in config else "layer_norm_epsilon", 1e-5)


def _mapping(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = config.get(name) or {}
    if not isinstance(value, Mapping):
        raise _corrupt(f"{name} is no object")
    return value


def _positive(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = config.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _corrupt(f"{name} is {value!r}, it must be a whole number above 0")
    return value


def _number(config: Mapping[str, Any], name: str, default: float) -> float:
    value = config.get(name)
    value = default if value is None else value
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise _corrupt(f"{name} is {value!r}, it must be a number above 0")
    return float(value)


def _flag(config: Mapping[str, Any], name: str, default: bool) -> bool:
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise _corrupt(f"{name} is {value!r}, it must be true or false")
    return value


def _corrupt(what: str) -> Terminal:
    return Terminal(Reason.CHECKPOINT_CORRUPT, f"config.json: {what}.")


def _unsupported(what: str) -> Terminal:
    return Terminal(Reason.UNSUPPORTED_ARCHITECTURE, f"The MPT checkpoint uses {what}: that is not supported.")
