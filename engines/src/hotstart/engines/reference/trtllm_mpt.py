"""What an MPT computes of which only a TensorRT-LLM checkpoint is there: its ranks, put together under MPT's own names.

Directions of the splits are those of TensorRT-LLM's MPT: the first linear layers and the head by rows, the others by
columns, norms and embeddings whole (or split, where the config says so). Its norms have no biases; its head may have
one instead. A tensor's name begins with its rank: ``rank0/transformer.ln_f.weight``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from hotstart.engines.checkpoints.checkpoint import Array
from hotstart.engines.checkpoints.mpt_config import EMBEDDINGS, MptFacts
from hotstart.engines.reference.mpt import MptReference
from hotstart.engines.reference.network import Weight

HEAD = "lm_head"
NORM_EPSILON = 1e-5  # of TensorRT-LLM's LayerNorm; the config does not say it
_PARTS = {
    "norm_1": "input_layernorm",
    "norm_2": "post_layernorm",
    "attn.Wqkv": "attention.qkv",
    "attn.out_proj": "attention.dense",
    "ffn.up_proj": "mlp.fc",
    "ffn.down_proj": "mlp.proj",
}
_BY_COLUMNS = ("attention.dense", "mlp.proj")


class TrtllmMptReference:
    """Implements ``Reference`` for an MPT in TensorRT-LLM's form, not quantized, with the checkpoint's config.json."""

    name = "numpy"

    def __init__(self, config: Mapping[str, Any], weight: Weight) -> None:
        facts = make_trtllm_mpt_facts(config)
        self._weights = RankWeights(config, facts, weight)
        self._network = MptReference(facts, self._weights)
        self._network.projection = f"{HEAD}.weight"
        self._bias = facts.bias

    def logits(self, ids: Sequence[int], positions: Sequence[int] | None = None) -> Array:
        return self.logits_of_all([ids], None if positions is None else [positions])[0]

    def logits_of_all(
        self, texts: Sequence[Sequence[int]], positions: Sequence[Sequence[int]] | None = None
    ) -> list[Array]:
        found = self._network.logits_of_all(texts, positions)
        return [rows + self._weights(f"{HEAD}.bias") for rows in found] if self._bias else found


def make_trtllm_mpt_facts(config: Mapping[str, Any]) -> MptFacts:
    """The facts in the config.json of a TensorRT-LLM checkpoint of an MPT, whose sizes were checked."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    clip = config.get("clip_qkv")
    return MptFacts(
        architecture=config["architecture"],
        layers=config["num_hidden_layers"],
        hidden=hidden,
        intermediate=config.get("intermediate_size", 4 * hidden),
        heads=heads,
        kv_heads=config.get("num_key_value_heads", heads),
        head_dim=hidden // heads,
        vocab=config["vocab_size"],
        context_length=0,
        alibi_bias_max=float(config.get("alibi_bias_max", 8)),
        clip_qkv=None if clip is None else float(clip),
        bias=bool(config.get("bias", False)),
        norm_epsilon=NORM_EPSILON,
    )


class RankWeights:
    """``Weight`` under the names of an MPT checkpoint."""

    def __init__(self, config: Mapping[str, Any], facts: MptFacts, read: Weight) -> None:
        self._read = read
        self._facts = facts
        self._ranks = range(config["mapping"]["tp_size"])
        split = config.get("use_parallel_embedding", False)
        self._embedding_axis = config.get("embedding_sharding_dim", 0) if split else None

    def __call__(self, name: str) -> Array:
        stem, _, kind = name.rpartition(".")
        if name == EMBEDDINGS:
            return self._embeddings()
        if stem == HEAD:
            return self._joined(name, 0)[: self._facts.vocab]
        part, theirs = self._find(stem)
        if kind == "bias" and "norm" in part:
            return np.zeros(self._facts.hidden, np.float32)
        if part == "attention.qkv":
            return self._qkv(f"{theirs}.{kind}")
        if part in _BY_COLUMNS:
            return self._whole(f"{theirs}.{kind}") if kind == "bias" else self._joined(f"{theirs}.{kind}", 1)
        return self._joined(f"{theirs}.{kind}", 0) if part == "mlp.fc" else self._whole(f"{theirs}.{kind}")

    def _find(self, stem: str) -> tuple[str, str]:
        """The part's name in TensorRT-LLM, and the whole name before ``.weight`` or ``.bias``."""
        if stem == "transformer.norm_f":
            return "layernorm", "transformer.ln_f"
        _, _, layer, ours = stem.split(".", 3)
        return _PARTS[ours], f"transformer.layers.{layer}.{_PARTS[ours]}"

    def _whole(self, name: str) -> Array:
        return self._read(f"rank0/{name}")

    def _joined(self, name: str, axis: int) -> Array:
        return np.concatenate([self._read(f"rank{rank}/{name}") for rank in self._ranks], axis=axis)

    def _embeddings(self) -> Array:
        name, axis = "transformer.vocab_embedding.weight", self._embedding_axis
        return self._whole(name) if axis is None else self._joined(name, axis)[: self._facts.vocab]

    def _qkv(self, name: str) -> Array:
        """Each rank has its own queries, keys and values; of fewer key heads than ranks, several have the same."""
        facts, count = self._facts, len(self._ranks)
        queries = facts.heads // count * facts.head_dim
        keys = max(1, facts.kv_heads // count) * facts.head_dim
        shared = max(1, count // facts.kv_heads)
        parts = [np.split(self._read(f"rank{rank}/{name}"), [queries, queries + keys]) for rank in self._ranks]
        q, k, v = ([part[i] for part in parts] for i in range(3))
        return np.concatenate([*q, *k[::shared], *v[::shared]])
