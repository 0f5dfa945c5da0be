"""LLaMA-like networks as a CTranslate2 specification, laid out as CTranslate2's own converter for LLaMA does."""

from __future__ import annotations

from typing import Any

import numpy as np
from ctranslate2.specs import attention_spec, common_spec, transformer_spec
from hotstart.engines.checkpoints.checkpoint import EMBEDDINGS, FINAL_NORM, PROJECTION, ModelFacts
from hotstart.engines.runtimes.ctranslate2_weights import WeightWriter, tie_projection

_SCALINGS = {
    "linear": attention_spec.RotaryScalingType.Linear,
    "llama3": attention_spec.RotaryScalingType.Llama3,
}


def make_llama_spec(facts: ModelFacts) -> Any:
    """An empty specification of the network. Pure."""
    scaling = facts.rope_scaling
    spec = transformer_spec.TransformerDecoderModelSpec.from_config(
        facts.layers,
        facts.heads,
        activation=common_spec.Activation.SWISH,
        pre_norm=True,
        ffn_glu=True,
        rms_norm=True,
        rotary_dim=0,
        rotary_interleave=False,
        rotary_scaling_type=_SCALINGS[scaling.kind] if scaling else None,
        rotary_scaling_factor=scaling.factor if scaling else 1,
        rotary_base=facts.rope_base,
        original_max_position_embeddings=scaling.original_context if scaling and scaling.kind == "llama3" else 0,
        num_heads_kv=None if facts.kv_heads == facts.heads else facts.kv_heads,
        head_dim=facts.head_dim if facts.head_dim * facts.heads != facts.hidden else None,
    )
    spec.decoder.scale_embeddings = False
    spec.config.layer_norm_epsilon = facts.rms_epsilon
    if scaling and scaling.kind == "llama3":
        for layer in spec.decoder.layer:
            layer.self_attention.rotary_low_freq_factor = np.float32(scaling.low_freq_factor)
            layer.self_attention.rotary_high_freq_factor = np.float32(scaling.high_freq_factor)
            # The runtime reads the factor, but the specification of 4.8 declares it for linear scaling only.
            object.__setattr__(layer.self_attention, "rotary_scaling_factor", np.float32(scaling.factor))
    return spec


def fill_llama_spec(spec: Any, facts: ModelFacts, weights: WeightWriter) -> None:
    """Puts every tensor of the checkpoint into ``spec``."""
    decoder = spec.decoder
    weights.linear(decoder.embeddings, EMBEDDINGS)
    decoder.layer_norm.gamma = weights.read(FINAL_NORM)
    if facts.tied_embeddings:
        tie_projection(decoder)
    else:
        weights.linear(decoder.projection, PROJECTION)
    for number, layer in enumerate(decoder.layer):
        _fill_layer(layer, f"model.layers.{number}.", weights)


def _fill_layer(layer: Any, prefix: str, weights: WeightWriter) -> None:
    layer.self_attention.layer_norm.gamma = weights.read(f"{prefix}input_layernorm.weight")
    layer.ffn.layer_norm.gamma = weights.read(f"{prefix}post_attention_layernorm.weight")
    weights.linear(layer.self_attention.linear[0], *(f"{prefix}self_attn.{name}_proj.weight" for name in "qkv"))
    weights.linear(layer.self_attention.linear[1], f"{prefix}self_attn.o_proj.weight")
    weights.linear(layer.ffn.linear_0, f"{prefix}mlp.gate_proj.weight")
    weights.linear(layer.ffn.linear_0_noact, f"{prefix}mlp.up_proj.weight")
    weights.linear(layer.ffn.linear_1, f"{prefix}mlp.down_proj.weight")
