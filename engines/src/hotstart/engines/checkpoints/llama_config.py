"""config.json of the LLaMA family -> ``ModelFacts``. Pure; every field that we would misread is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hotstart.engines.architectures import ARCHITECTURES as TABLE
from hotstart.engines.checkpoints.checkpoint import ModelFacts, RopeScaling
from hotstart.engines.errors import Reason, Terminal

ARCHITECTURES = tuple(known.name for known in TABLE if known.family == "llama")
MOST_LAYERS = 1000


def make_facts(config: Mapping[str, Any]) -> ModelFacts:
    """The facts in a Hugging Face config.json.

    Raises:
        Terminal: UnsupportedArchitecture, or CheckpointCorrupt where a field is missing or nonsense.
    """
    architecture = _architecture(config)
    refuse_unsupported(config)
    heads, hidden = _positive(config, "num_attention_heads"), _positive(config, "hidden_size")
    kv_heads = _positive(config, "num_key_value_heads", default=heads)
    facts = ModelFacts(
        architecture=architecture,
        layers=_positive(config, "num_hidden_layers"),
        hidden=hidden,
        intermediate=_positive(config, "intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_positive(config, "head_dim", default=hidden // heads),
        vocab=_positive(config, "vocab_size"),
        context_length=context_length(config),
        rms_epsilon=_number(config, "rms_norm_eps", default=1e-6),
        rope_base=rope_base(config),
        rope_scaling=make_rope_scaling(rope_parameters(config)),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        attention_bias=bool(config.get("attention_bias", False)),
        mlp_bias=bool(config.get("mlp_bias", False)),
    )
    check_sizes(facts)
    return facts


def check_sizes(facts: ModelFacts) -> None:
    """Raises Terminal where sizes cannot be: queries that share keys unevenly, an odd rotary width, absurd depth."""
    if facts.layers > MOST_LAYERS:
        raise Terminal(
            Reason.CHECKPOINT_CORRUPT,
            f"The config has {facts.layers} layers, more than any network has: upload the checkpoint again.",
        )
    if facts.heads % facts.kv_heads or facts.head_dim % 2:
        raise Terminal(
            Reason.CHECKPOINT_CORRUPT,
            f"The config has {facts.heads} attention heads of {facts.head_dim} values and {facts.kv_heads} "
            "key-value heads: the first must be a multiple of the last, and the width even.",
        )


def refuse_unsupported(config: Mapping[str, Any]) -> None:
    """Raises Terminal for what a LLaMA config may ask for and the converter does not do."""
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise _unsupported(f"hidden_act {activation!r} (known: silu)")
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unknown")
        raise _unsupported(f"weights that are already quantized ({method}); upload the unquantized checkpoint")


def make_rope_scaling(scaling: Mapping[str, Any] | None) -> RopeScaling | None:
    """The scaling of ``rope_scaling`` or ``rope_parameters``; None where positions are used as they are."""
    kind = (scaling or {}).get("rope_type") or (scaling or {}).get("type") or "default"
    if scaling is None or kind == "default":
        return None
    if kind not in ("linear", "llama3"):
        raise _unsupported(f"rope_scaling {kind!r} (known: linear, llama3)")
    return RopeScaling(
        kind=kind,
        factor=_number(scaling, "factor"),
        low_freq_factor=_number(scaling, "low_freq_factor", default=1.0),
        high_freq_factor=_number(scaling, "high_freq_factor", default=4.0),
        original_context=_positive(scaling, "original_max_position_embeddings", default=8192),
    )


def rope_parameters(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """``rope_scaling`` (transformers 4) or ``rope_parameters`` (transformers 5)."""
    found = config.get("rope_scaling") or config.get("rope_parameters")
    if found is not None and not isinstance(found, Mapping):
        raise Terminal(Reason.CHECKPOINT_CORRUPT, "config.json: rope_scaling is no object.")
    return found


def rope_base(config: Mapping[str, Any]) -> float:
    """Base of the rotary frequencies; it moved into ``rope_parameters`` with transformers 5."""
    if "rope_theta" in config:
        return _number(config, "rope_theta")
    return _number(rope_parameters(config) or {}, "rope_theta", default=10000.0)


def context_length(config: Mapping[str, Any]) -> int:
    """Tokens that the network attends to in full: within a sliding window it is the same as full attention."""
    context = _positive(config, "max_position_embeddings", default=2048)
    window = config.get("sliding_window")
    return min(context, window) if isinstance(window, int) and window > 0 else context


def _architecture(config: Mapping[str, Any]) -> str:
    found = config.get("architectures") or [config.get("model_type", "none")]
    name = found[0] if isinstance(found, list) and found else found
    if name not in ARCHITECTURES:
        raise Terminal(
            Reason.UNSUPPORTED_ARCHITECTURE,
            f"The checkpoint's architecture is {name}; known are {', '.join(ARCHITECTURES)}.",
        )
    return str(name)


def _unsupported(what: str) -> Terminal:
    return Terminal(Reason.UNSUPPORTED_ARCHITECTURE, f"The checkpoint uses {what}: that is not supported.")


def _positive(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = config.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise Terminal(
            Reason.CHECKPOINT_CORRUPT, f"config.json: {name} is {value!r}, it must be a whole number above 0."
        )
    return value


def _number(config: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = config.get(name)
    value = default if value is None else value
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise Terminal(Reason.CHECKPOINT_CORRUPT, f"config.json: {name} is {value!r}, it must be a number above 0.")
    return float(value)
