"""A TensorRT-LLM checkpoint with random weights, laid out as TensorRT-LLM 1.2.1's converters do for an MPT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.support.tiny_checkpoint import make_tokenizer_json

HIDDEN, HEADS, KV_HEADS, WIDE, LAYERS, VOCAB = 64, 4, 2, 128, 2, 512


def make_trtllm_config(ranks: int = 1, **changes: Any) -> dict[str, Any]:
    """config.json, with the fields of the facts."""
    config: dict[str, Any] = {
        "architecture": "MPTForCausalLM",
        "dtype": "float16",
        "logits_dtype": "float32",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": WIDE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "position_embedding_type": "alibi",
        "hidden_act": "gelu",
        "use_parallel_embedding": False,
        "embedding_sharding_dim": 0,
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
        "mapping": {"world_size": ranks, "tp_size": ranks, "pp_size": 1},
        "eos_token_id": 0,
    }
    return {name: value for name, value in (config | changes).items() if value is not ...}


def make_rank(ranks: int, *, packed: bool = False) -> dict[str, Any]:
    """The tensors of one rank; with ``packed`` linear weights are int8 in the kernels' layout, with a scale a row."""
    head_dim, kv_heads = HIDDEN // HEADS, max(KV_HEADS // ranks, 1)
    queries = HEADS // ranks * head_dim
    linear = {"attention.qkv": (queries + 2 * kv_heads * head_dim, HIDDEN), "attention.dense": (HIDDEN, queries)}
    linear |= {"mlp.fc": (WIDE // ranks, HIDDEN), "mlp.proj": (HIDDEN, WIDE // ranks)}
    random = np.random.default_rng(0)
    tensors = {
        "transformer.vocab_embedding.weight": random.standard_normal((VOCAB, HIDDEN)).astype(np.float16),
        "lm_head.weight": random.standard_normal((VOCAB // ranks, HIDDEN)).astype(np.float16),
        "transformer.ln_f.weight": np.ones(HIDDEN, np.float16),
    }
    for layer in range(LAYERS):
        prefix = f"transformer.layers.{layer}."
        for norm in ("input_layernorm", "post_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = np.ones(HIDDEN, np.float16)
        for name, (rows, columns) in linear.items():
            if packed:
                tensors[f"{prefix}{name}.weight"] = random.integers(-127, 128, (columns, rows)).astype(np.int8)
                tensors[f"{prefix}{name}.per_channel_scale"] = np.ones(rows, np.float16)
            else:
                tensors[f"{prefix}{name}.weight"] = random.standard_normal((rows, columns)).astype(np.float16)
    return tensors


def write_trtllm_checkpoint(folder: Path, ranks: int = 1, *, packed: bool = False, **changes: Any) -> Path:
    """Writes the checkpoint into ``folder`` (made if need be) and returns it; ``changes`` are fields of config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    if packed:
        changes = {"quantization": {"quant_algo": "W8A16"}, **changes}
    (folder / "config.json").write_text(json.dumps(make_trtllm_config(ranks, **changes)))
    (folder / "tokenizer.json").write_text(make_tokenizer_json(VOCAB))
    for rank in range(ranks):
        save_file(make_rank(ranks, packed=packed), folder / f"rank{rank}.safetensors")
    return folder
