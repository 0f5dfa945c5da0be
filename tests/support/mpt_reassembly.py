"""A TensorRT-LLM checkpoint of an MPT network, put together again from all ranks under the names of the original.

Written from the table of upstream's names and directions, apart from the converter: it looks at config.json and at the
files, and knows nothing of how they were made.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from hotstart.engines.checkpoints.mpt_config import MptFacts
from safetensors import safe_open

from tests.support.tiny_checkpoint import Weights

Arrays = dict[str, npt.NDArray[Any]]


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as a dictionary."""
    value: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return value


def read_facts(folder: Path) -> MptFacts:
    """What the converted checkpoint says of itself, as facts for the reference."""
    config = read_config(folder)
    return MptFacts(
        architecture=config["architecture"],
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        intermediate=config["intermediate_size"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_dim=config["hidden_size"] // config["num_attention_heads"],
        vocab=config["vocab_size"],
        context_length=0,
        alibi_bias_max=config["alibi_bias_max"],
        clip_qkv=config["clip_qkv"],
        bias=config["bias"],
    )


def read_rank(path: Path) -> Arrays:
    """Tensors of one file: 16-bit ones as float32, bytes as int8. The library checks the file's form."""
    with safe_open(path, framework="numpy") as opened:
        names = set(opened.keys())
    raw = path.read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + length])
    assert set(header) == names
    found: Arrays = {}
    for name, entry in header.items():
        start, stop = (8 + length + offset for offset in entry["data_offsets"])
        kind = {"F16": np.float16, "BF16": np.uint16, "I8": np.int8}[entry["dtype"]]
        assert start % np.dtype(kind).itemsize == 0, f"{name} is not aligned"
        value = np.frombuffer(raw[start:stop], kind).reshape(entry["shape"])
        if entry["dtype"] == "BF16":
            value = (value.astype(np.uint32) << 16).view(np.float32)
        found[name] = value if entry["dtype"] == "I8" else value.astype(np.float32)
    return found


def reassemble(folder: Path) -> Weights:
    """All weights by their names in the MPT checkpoint, and ``lm_head.bias`` where there are biases.

    The norms have no biases any more: they come back as zeros.
    """
    facts, count = read_facts(folder), read_config(folder)["mapping"]["tp_size"]
    files = sorted(folder.glob("rank*.safetensors"))
    assert [file.name for file in files] == [f"rank{rank}.safetensors" for rank in range(count)]
    ranks = [_without_scales(read_rank(file)) for file in files]
    assert all(rank.keys() == ranks[0].keys() for rank in ranks)
    weights: Weights = {"transformer.wte.weight": _same(ranks, "transformer.vocab_embedding.weight")}
    weights |= _norm(ranks, "transformer.ln_f", "transformer.norm_f", facts)
    for layer in range(facts.layers):
        new, old = f"transformer.layers.{layer}", f"transformer.blocks.{layer}"
        weights |= _norm(ranks, f"{new}.input_layernorm", f"{old}.norm_1", facts)
        weights |= _norm(ranks, f"{new}.post_layernorm", f"{old}.norm_2", facts)
        for part in ("weight", "bias") if facts.bias else ("weight",):
            down = _same if part == "bias" else _columns
            weights[f"{old}.attn.Wqkv.{part}"] = _qkv(ranks, f"{new}.attention.qkv.{part}", facts)
            weights[f"{old}.attn.out_proj.{part}"] = down(ranks, f"{new}.attention.dense.{part}")
            weights[f"{old}.ffn.up_proj.{part}"] = _rows(ranks, f"{new}.mlp.fc.{part}")
            weights[f"{old}.ffn.down_proj.{part}"] = down(ranks, f"{new}.mlp.proj.{part}")
    _check_head(ranks, weights, facts)
    if facts.bias:
        weights["lm_head.bias"] = _rows(ranks, "lm_head.bias")[: facts.vocab]
    return weights


def _check_head(ranks: list[Arrays], weights: Weights, facts: MptFacts) -> None:
    head = _rows(ranks, "lm_head.weight")
    assert np.array_equal(head[: facts.vocab], weights["transformer.wte.weight"])
    assert len(head) < facts.vocab + len(ranks)
    assert not head[facts.vocab :].any()


def _qkv(ranks: list[Arrays], name: str, facts: MptFacts) -> npt.NDArray[np.float32]:
    queries = facts.heads // len(ranks) * facts.head_dim
    keys = max(1, facts.kv_heads // len(ranks)) * facts.head_dim
    assert all(len(rank[name]) == queries + 2 * keys for rank in ranks)
    q, k, v = zip(*(np.split(rank[name], [queries, queries + keys]) for rank in ranks), strict=True)
    shared = max(1, len(ranks) // facts.kv_heads)  # ranks that have the same key-value head
    for part in (k, v):
        assert all(np.array_equal(part[rank], part[rank // shared * shared]) for rank in range(len(ranks)))
    return np.concatenate([*q, *k[::shared], *v[::shared]])


def _norm(ranks: list[Arrays], new: str, old: str, facts: MptFacts) -> Weights:
    assert f"{new}.bias" not in ranks[0]
    weight = _same(ranks, f"{new}.weight")
    return {f"{old}.weight": weight} | ({f"{old}.bias": np.zeros_like(weight)} if facts.bias else {})


def _same(ranks: list[Arrays], name: str) -> npt.NDArray[np.float32]:
    assert all(np.array_equal(rank[name], ranks[0][name]) for rank in ranks)
    return ranks[0][name]


def _rows(ranks: list[Arrays], name: str) -> npt.NDArray[np.float32]:
    return np.concatenate([rank[name] for rank in ranks])


def _columns(ranks: list[Arrays], name: str) -> npt.NDArray[np.float32]:
    return np.concatenate([rank[name] for rank in ranks], axis=1)


def _without_scales(tensors: Arrays) -> Arrays:
    """Quantized weights as float32 [out, in], from the layout of ``tests/support/weight_only.py``."""
    found = {name: value for name, value in tensors.items() if not name.endswith("per_channel_scale")}
    for name, value in found.items():
        if value.dtype == np.int8:
            scales = tensors[name.removesuffix("weight") + "per_channel_scale"]
            if value.shape[1] != len(scales):  # two of 4 bits in a byte, the lower half first
                low, high = ((value << 4).astype(np.int8) >> 4), value >> 4
                value = np.stack([low, high], axis=-1).reshape(len(value), -1)
            found[name] = np.ascontiguousarray((value * scales).T, dtype=np.float32)
    return found
