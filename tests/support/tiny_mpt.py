"""A tiny MPT checkpoint with weights from a seed, like replit-code-v1_5-3b: grouped queries, ALiBi, no biases.

Everything that a converter must keep apart differs: queries, keys and values have scales of their own, so that rows in
the wrong place change the logits.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.support.tiny_checkpoint import END_OF_TEXT, Weights, make_tokenizer_json, write_safetensors


@dataclass(frozen=True)
class TinyMptShape:
    """Sizes of the network; ``kv_heads`` equal to ``heads`` is multi-head attention, 1 is multi-query."""

    layers: int = 2
    width: int = 64
    heads: int = 4
    kv_heads: int = 2
    vocab: int = 512
    context: int = 256
    expansion: int = 4
    bias: bool = False
    clip_qkv: float | None = None
    alibi_bias_max: int = 8

    @property
    def kv_width(self) -> int:
        """Rows of the keys, and of the values, in ``Wqkv``."""
        return self.width // self.heads * self.kv_heads


REPLIT = TinyMptShape(layers=32, width=3072, heads=24, kv_heads=8, vocab=32768, context=4096)


def make_mpt_config(shape: TinyMptShape, dtype: str = "float32") -> dict[str, Any]:
    """config.json as a dictionary, with the fields of replit-code-v1_5-3b."""
    kinds = {shape.heads: "multihead_attention"}
    attention: dict[str, Any] = {
        "alibi": True,
        "alibi_bias_max": shape.alibi_bias_max,
        "attn_impl": "triton",
        "attn_pdrop": 0.0,
        "attn_type": kinds.get(shape.kv_heads, "grouped_query_attention"),
        "attn_uses_sequence_id": False,
        "clip_qkv": shape.clip_qkv,
        "prefix_lm": False,
        "qk_ln": False,
        "softmax_scale": None,
    }
    if shape.kv_heads != shape.heads:
        attention["kv_n_heads"] = shape.kv_heads
    return {
        "architectures": ["MPTForCausalLM"],
        "attn_config": attention,
        "d_model": shape.width,
        "emb_pdrop": 0.0,
        "embedding_fraction": 1.0,
        "expansion_ratio": shape.expansion,
        "fc_type": "torch",
        "ffn_config": {"fc_type": "torch", "ffn_type": "mptmlp"},
        "init_config": {"name": "kaiming_normal_", "init_nonlinearity": "relu", "fan_mode": "fan_in"},
        "init_device": "cpu",
        "learned_pos_emb": False,
        "logit_scale": None,
        "max_seq_len": shape.context,
        "model_type": "mpt",
        "n_heads": shape.heads,
        "n_layers": shape.layers,
        "no_bias": not shape.bias,
        "norm_type": "low_precision_layernorm",
        "resid_pdrop": 0.0,
        "torch_dtype": dtype,
        "use_cache": False,
        "vocab_size": shape.vocab,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


def make_tiny_mpt_weights(shape: TinyMptShape = TinyMptShape(), *, seed: int = 0) -> Weights:
    """Weights by their names in an MPT checkpoint, float32, the same for the same seed."""
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int, scale: float) -> npt.NDArray[np.float32]:
        return random.standard_normal((rows, columns), dtype=np.float32) * np.float32(scale / np.sqrt(columns))

    def vector(size: int, mean: float) -> npt.NDArray[np.float32]:
        return np.float32(mean) + np.float32(0.1) * random.standard_normal(size, dtype=np.float32)

    def norm(name: str) -> Weights:
        return {f"{name}.weight": vector(shape.width, 1)} | (
            {f"{name}.bias": vector(shape.width, 0)} if shape.bias else {}
        )

    def linear(name: str, weight: npt.NDArray[np.float32]) -> Weights:
        return {f"{name}.weight": weight} | ({f"{name}.bias": vector(len(weight), 0)} if shape.bias else {})

    width, wide = shape.width, shape.width * shape.expansion
    weights: Weights = {"transformer.wte.weight": matrix(shape.vocab, width, 0.5 * np.sqrt(width))}
    for layer in range(shape.layers):
        prefix = f"transformer.blocks.{layer}"
        scales = ((width, 1.5), (shape.kv_width, 1.2), (shape.kv_width, 0.9))
        weights |= norm(f"{prefix}.norm_1") | norm(f"{prefix}.norm_2")
        weights |= linear(f"{prefix}.attn.Wqkv", np.concatenate([matrix(rows, width, s) for rows, s in scales]))
        weights |= linear(f"{prefix}.attn.out_proj", matrix(width, width, 1.0))
        weights |= linear(f"{prefix}.ffn.up_proj", matrix(wide, width, 1.5))
        weights |= linear(f"{prefix}.ffn.down_proj", matrix(width, wide, 1.0))
    return weights | norm("transformer.norm_f")


def write_tiny_mpt(
    folder: Path,
    *,
    shape: TinyMptShape = TinyMptShape(),
    seed: int = 0,
    shards: int = 1,
    dtype: str = "float32",
    weights: Weights | None = None,
) -> Path:
    """Writes the checkpoint into ``folder`` (made if need be) and returns it.

    ``dtype`` is float32, float16 or bfloat16; with ``shards`` above 1 there is model.safetensors.index.json;
    ``weights`` replaces those of the seed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = weights if weights is not None else make_tiny_mpt_weights(shape, seed=seed)
    names = sorted(weights)
    if shards == 1:
        write_safetensors(folder / "model.safetensors", weights, names, dtype)
    else:
        files = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
        for i, file in enumerate(files):
            write_safetensors(folder / file, weights, names[i::shards], dtype)
        index = {"metadata": {}, "weight_map": {name: files[i % shards] for i, name in enumerate(names)}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(make_mpt_config(shape, dtype), indent=2))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": 0}))
    (folder / "tokenizer.json").write_text(make_tokenizer_json(max(shape.vocab, 300)))
    tokenizer_config = {"add_bos_token": False, "eos_token": END_OF_TEXT, "bos_token": END_OF_TEXT}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return folder
