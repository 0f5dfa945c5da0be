"""MPT as a CTranslate2 specification.

From CTranslate2 4.8's own converter for MPT (``MPTLoader``) comes what its runtime wants: ``alibi`` on the decoder,
one linear layer for queries, keys and values, exact GELU, embeddings as they are, and a ``beta`` of zeros for a norm
without bias (a norm without ``beta`` runs as RMSNorm). That converter knows no key heads of their own, no biases and no
epsilon; here they are ``num_heads_kv``, ``bias`` and ``layer_norm_epsilon``, as for the runtime's other networks.

The runtime's slopes of ALiBi are those of MPT with ``alibi_bias_max`` 8, for any number of heads; it has no other, and
it cannot clip queries, keys and values (``ctranslate2_limits.py``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ctranslate2.specs import common_spec, transformer_spec
from hotstart.engines.checkpoints.mpt_config import EMBEDDINGS, MptFacts
from hotstart.engines.runtimes.ctranslate2_limits import check_mpt
from hotstart.engines.runtimes.ctranslate2_weights import WeightWriter, tie_projection


def make_mpt_spec(facts: MptFacts) -> Any:
    """An empty specification of the network. Pure.

    Raises:
        Terminal: UnsupportedArchitecture, CTranslate2 cannot compute it.
    """
    check_mpt(facts)
    spec = transformer_spec.TransformerDecoderModelSpec.from_config(
        facts.layers,
        facts.heads,
        activation=common_spec.Activation.GELU,
        pre_norm=True,
        alibi=True,
        num_heads_kv=None if facts.kv_heads == facts.heads else facts.kv_heads,
    )
    spec.decoder.scale_embeddings = False
    spec.config.layer_norm_epsilon = facts.norm_epsilon
    return spec


def fill_mpt_spec(spec: Any, facts: MptFacts, weights: WeightWriter) -> None:
    """Puts every tensor of the checkpoint into ``spec``."""
    decoder = spec.decoder
    weights.linear(decoder.embeddings, EMBEDDINGS)
    tie_projection(decoder)
    _fill_norm(decoder.layer_norm, "transformer.norm_f", facts, weights)
    for number, layer in enumerate(decoder.layer):
        prefix = f"transformer.blocks.{number}."
        _fill_norm(layer.self_attention.layer_norm, f"{prefix}norm_1", facts, weights)
        weights.linear(layer.self_attention.linear[0], f"{prefix}attn.Wqkv.weight")
        weights.linear(layer.self_attention.linear[1], f"{prefix}attn.out_proj.weight")
        _fill_norm(layer.ffn.layer_norm, f"{prefix}norm_2", facts, weights)
        weights.linear(layer.ffn.linear_0, f"{prefix}ffn.up_proj.weight")
        weights.linear(layer.ffn.linear_1, f"{prefix}ffn.down_proj.weight")


def _fill_norm(spec: Any, name: str, facts: MptFacts, weights: WeightWriter) -> None:
    spec.gamma = weights.read(f"{name}.weight")
    spec.beta = weights.read(f"{name}.bias") if facts.bias else np.zeros_like(spec.gamma)
