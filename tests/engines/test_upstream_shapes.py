"""Every tensor that transformers gives the networks of upstream has the shape that is said of it."""

from __future__ import annotations

from typing import Any

import pytest
from hotstart.engines.checkpoints.upstream_config import UpstreamFacts
from hotstart.engines.checkpoints.upstream_shapes import check_upstream_shapes, expected_upstream_shape
from hotstart.engines.errors import Reason, Terminal

#: One layer of each family as transformers 4.57 names it: vocabulary 512, hidden 64, 4 heads of 16, inner 96
#: (gated ones) or 256.
NAMES: dict[str, tuple[UpstreamFacts, dict[str, tuple[int, ...]]]] = {
    "Qwen2ForCausalLM": (
        UpstreamFacts("Qwen2ForCausalLM", 1, 64, 96, 4, 2, 16, 512, 128),
        {
            "model.embed_tokens.weight": (512, 64),
            "model.layers.0.self_attn.q_proj.weight": (64, 64),
            "model.layers.0.self_attn.q_proj.bias": (64,),
            "model.layers.0.self_attn.k_proj.weight": (32, 64),
            "model.layers.0.self_attn.v_proj.bias": (32,),
            "model.layers.0.self_attn.o_proj.weight": (64, 64),
            "model.layers.0.mlp.gate_proj.weight": (96, 64),
            "model.layers.0.mlp.down_proj.weight": (64, 96),
            "model.layers.0.input_layernorm.weight": (64,),
            "model.norm.weight": (64,),
            "lm_head.weight": (512, 64),
        },
    ),
    "Gemma2ForCausalLM": (
        UpstreamFacts("Gemma2ForCausalLM", 1, 64, 96, 4, 2, 32, 512, 128),
        {
            "model.embed_tokens.weight": (512, 64),
            "model.layers.0.self_attn.q_proj.weight": (128, 64),
            "model.layers.0.self_attn.k_proj.weight": (64, 64),
            "model.layers.0.self_attn.o_proj.weight": (64, 128),
            "model.layers.0.pre_feedforward_layernorm.weight": (64,),
        },
    ),
    "PhiForCausalLM": (
        UpstreamFacts("PhiForCausalLM", 1, 64, 256, 4, 4, 16, 512, 128),
        {
            "model.embed_tokens.weight": (512, 64),
            "model.layers.0.self_attn.dense.weight": (64, 64),
            "model.layers.0.self_attn.q_layernorm.weight": (16,),
            "model.layers.0.mlp.fc1.weight": (256, 64),
            "model.layers.0.mlp.fc1.bias": (256,),
            "model.layers.0.mlp.fc2.weight": (64, 256),
            "model.final_layernorm.bias": (64,),
            "lm_head.bias": (512,),
        },
    ),
    "Phi3ForCausalLM": (
        UpstreamFacts("Phi3ForCausalLM", 1, 64, 96, 4, 2, 16, 512, 128),
        {
            "model.embed_tokens.weight": (512, 64),
            "model.layers.0.self_attn.qkv_proj.weight": (128, 64),
            "model.layers.0.mlp.gate_up_proj.weight": (192, 64),
        },
    ),
    "GPTBigCodeForCausalLM": (
        UpstreamFacts("GPTBigCodeForCausalLM", 1, 64, 256, 4, 1, 16, 512, 128),
        {
            "transformer.wte.weight": (512, 64),
            "transformer.wpe.weight": (128, 64),
            "transformer.h.0.attn.c_attn.weight": (96, 64),
            "transformer.h.0.attn.c_attn.bias": (96,),
            "transformer.h.0.attn.c_proj.weight": (64, 64),
            "transformer.h.0.mlp.c_fc.weight": (256, 64),
            "transformer.h.0.mlp.c_proj.weight": (64, 256),
            "transformer.h.0.ln_1.weight": (64,),
            "transformer.ln_f.bias": (64,),
        },
    ),
    "Starcoder2ForCausalLM": (
        UpstreamFacts("Starcoder2ForCausalLM", 1, 64, 256, 4, 2, 16, 512, 128),
        {
            "model.embed_tokens.weight": (512, 64),
            "model.layers.0.self_attn.k_proj.bias": (32,),
            "model.layers.0.mlp.c_fc.weight": (256, 64),
            "model.layers.0.mlp.c_proj.bias": (64,),
        },
    ),
    "GPTJForCausalLM": (
        UpstreamFacts("GPTJForCausalLM", 1, 64, 256, 4, 4, 16, 512, 128),
        {
            "transformer.wte.weight": (512, 64),
            "transformer.h.0.attn.bias": (1, 1, 128, 128),
            "transformer.h.0.attn.masked_bias": (),
            "transformer.h.0.attn.out_proj.weight": (64, 64),
            "transformer.h.0.mlp.fc_in.weight": (256, 64),
            "transformer.h.0.mlp.fc_out.weight": (64, 256),
        },
    ),
    "GPTNeoXForCausalLM": (
        UpstreamFacts("GPTNeoXForCausalLM", 1, 64, 256, 4, 4, 16, 512, 128),
        {
            "gpt_neox.embed_in.weight": (512, 64),
            "gpt_neox.layers.0.attention.rotary_emb.inv_freq": (4,),
            "gpt_neox.layers.0.attention.query_key_value.weight": (192, 64),
            "gpt_neox.layers.0.attention.dense.weight": (64, 64),
            "gpt_neox.layers.0.mlp.dense_h_to_4h.weight": (256, 64),
            "gpt_neox.layers.0.mlp.dense_4h_to_h.bias": (64,),
            "gpt_neox.final_layer_norm.weight": (64,),
            "embed_out.weight": (512, 64),
        },
    ),
    "FalconForCausalLM": (
        UpstreamFacts("FalconForCausalLM", 1, 64, 256, 4, 2, 16, 512, 128),
        {
            "transformer.word_embeddings.weight": (512, 64),
            "transformer.h.0.self_attention.query_key_value.weight": (128, 64),
            "transformer.h.0.ln_attn.weight": (64,),
        },
    ),
    "BloomForCausalLM": (
        UpstreamFacts("BloomForCausalLM", 1, 64, 256, 4, 4, 16, 512, 128),
        {
            "word_embeddings.weight": (512, 64),
            "word_embeddings_layernorm.weight": (64,),
            "h.0.self_attention.query_key_value.bias": (192,),
            "h.0.self_attention.dense.bias": (64,),
        },
    ),
}
FREE = ("wpe.weight", "q_layernorm.weight", ".attn.bias", "masked_bias", "inv_freq")


@pytest.mark.parametrize("name", NAMES)
def test_the_tensors_of_each_family_are_as_its_config_says(name: str) -> None:
    facts, shapes = NAMES[name]
    check_upstream_shapes(facts, shapes)
    for tensor, shape in shapes.items():
        assert expected_upstream_shape(facts, tensor) == (None if tensor.endswith(FREE) else shape)


@pytest.mark.parametrize(
    ("name", "tensor"), [(name, tensor) for name, (_, shapes) in NAMES.items() for tensor in shapes]
)
def test_a_tensor_of_another_width_is_named(name: str, tensor: str) -> None:
    facts, shapes = NAMES[name]
    changed: dict[str, Any] = {**shapes, tensor: tuple(length + 16 for length in shapes[tensor]), "a": (512, 64)}
    if tensor.endswith(FREE):
        check_upstream_shapes(facts, changed)
        return
    with pytest.raises(Terminal, match=f"The tensor {tensor} has shape") as failure:
        check_upstream_shapes(facts, changed)
    assert failure.value.reason is Reason.CHECKPOINT_CORRUPT
