"""config.json of MPT: what it says, and that whatever nobody here does is refused by its name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hotstart.engines.checkpoints.checkpoint import check_shapes, count_parameters, llama_facts, mpt_facts
from hotstart.engines.checkpoints.facts import make_checkpoint_facts
from hotstart.engines.checkpoints.mpt_config import MptFacts, is_mpt
from hotstart.engines.checkpoints.safetensors_folder import SafetensorsFolder
from hotstart.engines.errors import Reason, Terminal

from tests.support.tiny_checkpoint import write_tiny_checkpoint
from tests.support.tiny_mpt import REPLIT, TinyMptShape, make_mpt_config, make_tiny_mpt_weights, write_tiny_mpt

UNSUPPORTED, CORRUPT = Reason.UNSUPPORTED_ARCHITECTURE, Reason.CHECKPOINT_CORRUPT


def changed(change: Mapping[str, Any]) -> dict[str, Any]:
    """The config of replit-code-v1_5-3b with other fields; ``a.b`` is field b of object a, ``...`` removes one."""
    config = make_mpt_config(REPLIT)
    for path, value in change.items():
        *outer, name = path.split(".")
        place = config[outer[0]] if outer else config
        if value is ...:
            del place[name]
        else:
            place[name] = value
    return config


def test_replit_code_has_3_3_billion_weights() -> None:
    facts = make_checkpoint_facts(make_mpt_config(REPLIT))
    assert facts == MptFacts(
        architecture="MPTForCausalLM",
        layers=32,
        hidden=3072,
        intermediate=12288,
        heads=24,
        kv_heads=8,
        head_dim=128,
        vocab=32768,
        context_length=4096,
        alibi_bias_max=8.0,
        clip_qkv=None,
        bias=False,
        norm_epsilon=1e-5,
    )
    assert count_parameters(facts) == 3_322_088_448
    assert facts.to_json() == {
        "architecture": "MPTForCausalLM",
        "layers": 32,
        "hidden": 3072,
        "intermediate": 12288,
        "heads": 24,
        "kvHeads": 8,
        "headDim": 128,
        "vocab": 32768,
        "contextLength": 4096,
        "alibiBiasMax": 8.0,
        "normEpsilon": 1e-5,
    }


UNDERSTOOD: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "multi-head": ({"attn_config.attn_type": "multihead_attention", "attn_config.kv_n_heads": ...}, {"kv_heads": 24}),
    "multi-query": ({"attn_config.attn_type": "multiquery_attention", "attn_config.kv_n_heads": ...}, {"kv_heads": 1}),
    "attention not named": ({"attn_config.attn_type": ..., "attn_config.kv_n_heads": ...}, {"kv_heads": 24}),
    "clipped": ({"attn_config.clip_qkv": 6}, {"clip_qkv": 6.0}),
    "biases": ({"no_bias": False}, {"bias": True}),
    "biases by default": ({"no_bias": ...}, {"bias": True}),
    "steeper slopes": ({"attn_config.alibi_bias_max": 16}, {"alibi_bias_max": 16.0}),
    "slopes by default": ({"attn_config.alibi_bias_max": ...}, {"alibi_bias_max": 8.0}),
    "width by its other name": ({"d_model": ..., "hidden_size": 1536}, {"hidden": 1536, "head_dim": 64}),
    "another expansion": ({"expansion_ratio": 2.5}, {"intermediate": 7680}),
    "a width of the MLP": ({"ffn_config.ffn_hidden_size": 8192}, {"intermediate": 8192}),
    "plain layernorm": ({"norm_type": "LayerNorm"}, {}),
    "another epsilon": ({"norm_eps": 1e-6}, {"norm_epsilon": 1e-6}),
    "epsilon of transformers": ({"layer_norm_epsilon": 1e-6}, {"norm_epsilon": 1e-6}),
    "the usual scale, said": ({"attn_config.softmax_scale": 128**-0.5}, {}),
    "rotary settings, unused": ({"attn_config.rope": False, "attn_config.rope_theta": 10000}, {}),
    "no window": ({"attn_config.sliding_window_size": -1}, {}),
    "transformers' class": ({"architectures": ["MptForCausalLM"]}, {"architecture": "MPTForCausalLM"}),
    "no class, but a type": ({"architectures": ...}, {}),
    "learned positions beside ALiBi": ({"learned_pos_emb": True}, {}),
    "exact gelu, said": ({"ffn_config.ffn_act_fn": {"name": "gelu", "approximate": "none"}}, {}),
    "dropout": ({"attn_config.attn_pdrop": 0.1, "emb_pdrop": 0.1, "attn_config.attn_impl": "flash"}, {}),
}


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_understood(name: str) -> None:
    change, expected = UNDERSTOOD[name]
    found, usual = make_checkpoint_facts(changed(change)), make_checkpoint_facts(make_mpt_config(REPLIT))
    assert isinstance(found, MptFacts)
    differs = {field for field in vars(usual) if getattr(found, field) != getattr(usual, field)}
    assert {field: getattr(found, field) for field in expected} == expected
    assert differs <= {*expected, "intermediate"}


REFUSED: dict[str, tuple[dict[str, Any], Reason, str]] = {
    "learned positions": ({"attn_config.alibi": False}, UNSUPPORTED, "alibi false (learned position embeddings"),
    "positions not named": ({"attn_config.alibi": ...}, UNSUPPORTED, "alibi false"),
    "no attn_config": ({"attn_config": ...}, UNSUPPORTED, "alibi false"),
    "rotary positions": ({"attn_config.rope": True, "attn_config.rope_theta": 1e4}, UNSUPPORTED, "attn_config.rope"),
    "another attention": ({"attn_config.attn_type": "mla"}, UNSUPPORTED, "attn_type 'mla'; known are multihead"),
    "norms of queries": ({"attn_config.qk_ln": True}, UNSUPPORTED, "attn_config.qk_ln True"),
    "group norms of queries": ({"attn_config.qk_gn": True}, UNSUPPORTED, "attn_config.qk_gn True"),
    "another scale": (
        {"attn_config.softmax_scale": 0.5},
        UNSUPPORTED,
        "softmax_scale 0.5; known is 1/sqrt(head width)",
    ),
    "a prefix model": ({"attn_config.prefix_lm": True}, UNSUPPORTED, "attn_config.prefix_lm True"),
    "a window": ({"attn_config.sliding_window_size": 512}, UNSUPPORTED, "sliding_window_size 512"),
    "soft capping": ({"attn_config.attn_logit_softcapping": 30.0}, UNSUPPORTED, "attn_logit_softcapping 30.0"),
    "an option of tomorrow": ({"attn_config.heads_of_glass": 3}, UNSUPPORTED, "attn_config.heads_of_glass 3"),
    "queries apart": ({"attn_config.fused_qkv": False}, UNSUPPORTED, "fused_qkv false"),
    "another norm": ({"norm_type": "rmsnorm"}, UNSUPPORTED, "norm_type 'rmsnorm'; known are low_precision_layernorm"),
    "untied": ({"tie_word_embeddings": False}, UNSUPPORTED, "tie_word_embeddings false"),
    "scaled logits": ({"logit_scale": "inv_sqrt_d_model"}, UNSUPPORTED, "logit_scale 'inv_sqrt_d_model'"),
    "capped logits": ({"final_logit_softcapping": 30.0}, UNSUPPORTED, "final_logit_softcapping 30.0"),
    "layers that differ": ({"block_overrides": {"order": []}}, UNSUPPORTED, "block_overrides"),
    "a gated MLP": ({"ffn_config.ffn_type": "mptglu"}, UNSUPPORTED, "ffn_config.ffn_type 'mptglu'"),
    "another activation": ({"ffn_config.ffn_act_fn": {"name": "silu"}}, UNSUPPORTED, "ffn_act_fn {'name': 'silu'}"),
    "transformer engine": ({"fc_type": "te"}, UNSUPPORTED, "fc_type 'te'; known is torch"),
    "quantized before": ({"quantization_config": {"quant_method": "gptq"}}, UNSUPPORTED, "quantization_config"),
    "no width": ({"d_model": ...}, CORRUPT, "hidden_size is None"),
    "a width of text": ({"d_model": "3072"}, CORRUPT, "d_model is '3072'"),
    "width and heads": ({"n_heads": 25}, CORRUPT, "d_model is 3072 and n_heads 25"),
    "heads do not share": ({"attn_config.kv_n_heads": 7}, CORRUPT, "n_heads is 24 and attn_config.kv_n_heads 7"),
    "groups of no number": ({"attn_config.kv_n_heads": ...}, CORRUPT, "kv_n_heads is None"),
    "heads of two minds": ({"attn_config.attn_type": "multihead_attention"}, CORRUPT, "kv_n_heads is 8"),
    "no layers": ({"n_layers": 0}, CORRUPT, "n_layers is 0"),
    "absurd depth": ({"n_layers": 1001}, CORRUPT, "n_layers is 1001"),
    "clipped to less than nothing": ({"attn_config.clip_qkv": -1}, CORRUPT, "clip_qkv is -1"),
    "biases of text": ({"no_bias": "yes"}, CORRUPT, "no_bias is 'yes'"),
    "attn_config of text": ({"attn_config": "alibi"}, CORRUPT, "attn_config is no object"),
    "slopes of NaN": ({"attn_config.alibi_bias_max": float("nan")}, CORRUPT, "alibi_bias_max is nan"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    change, reason, words = REFUSED[name]
    with pytest.raises(Terminal) as refused:
        make_checkpoint_facts(changed(change))
    assert refused.value.reason is reason
    assert words in refused.value.message


def test_a_network_of_another_name_is_no_mpt() -> None:
    assert not is_mpt({"architectures": ["LlamaForCausalLM"], "model_type": "mpt"})
    assert not is_mpt({"architectures": [], "model_type": "llama"})
    assert not is_mpt({})


@pytest.mark.parametrize("shape", [TinyMptShape(), TinyMptShape(bias=True, kv_heads=4), TinyMptShape(kv_heads=1)])
def test_files_are_as_the_config_says(shape: TinyMptShape, tmp_path: Path) -> None:
    checkpoint = SafetensorsFolder(write_tiny_mpt(tmp_path, shape=shape, shards=3))
    check_shapes(checkpoint)
    weights = make_tiny_mpt_weights(shape)
    assert checkpoint.shapes() == {name: value.shape for name, value in weights.items()}
    assert count_parameters(checkpoint.facts) == sum(value.size for value in weights.values())
    with pytest.raises(Terminal, match="of MPTForCausalLM; this step knows LLaMA-like networks"):
        llama_facts(checkpoint)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    weights = make_tiny_mpt_weights()
    del weights["transformer.blocks.1.attn.Wqkv.weight"]
    with pytest.raises(Terminal, match=r"lack the tensor transformer\.blocks\.1\.attn\.Wqkv\.weight"):
        check_shapes(SafetensorsFolder(write_tiny_mpt(tmp_path, weights=weights)))


def test_a_llama_is_no_mpt(tmp_path: Path) -> None:
    with pytest.raises(Terminal, match="of LlamaForCausalLM; this step knows MPT networks"):
        mpt_facts(SafetensorsFolder(write_tiny_checkpoint(tmp_path)))
