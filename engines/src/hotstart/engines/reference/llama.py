"""LLaMA and its kin in numpy, from the papers.

RMSNorm (arXiv 1910.07467), rotary positions on the two halves of each head (arXiv 2104.09864, halves as in
transformers), grouped queries (arXiv 2305.13245), SwiGLU (arXiv 2002.05202).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from hotstart.engines.checkpoints.checkpoint import (
    EMBEDDINGS,
    FINAL_NORM,
    PROJECTION,
    Array,
    ModelFacts,
    RopeScaling,
)
from hotstart.engines.reference.network import Texts, Weight, attend, linear, run, split_heads


class LlamaReference:
    """Implements ``Reference`` for a LLaMA-like checkpoint."""

    name = "numpy"

    def __init__(self, facts: ModelFacts, weight: Weight) -> None:
        self.embeddings = EMBEDDINGS
        self.projection = EMBEDDINGS if facts.tied_embeddings else PROJECTION
        self.count = facts.layers
        self._facts = facts
        self._weight = weight
        self._frequencies = rotary_frequencies(facts.head_dim, facts.rope_base, facts.rope_scaling)

    def logits(self, ids: Sequence[int], positions: Sequence[int] | None = None) -> Array:
        return self.logits_of_all([ids], None if positions is None else [positions])[0]

    def logits_of_all(
        self, texts: Sequence[Sequence[int]], positions: Sequence[Sequence[int]] | None = None
    ) -> list[Array]:
        return run(self, self._weight, texts, positions)

    def apply(self, number: int, x: Array, texts: Texts) -> Array:
        prefix = f"model.layers.{number}."
        x = x + self._attention(f"{prefix}self_attn.", self._norm(x, f"{prefix}input_layernorm.weight"), texts)
        return x + self._feed_forward(f"{prefix}mlp.", self._norm(x, f"{prefix}post_attention_layernorm.weight"))

    def finish(self, x: Array) -> Array:
        return self._norm(x, FINAL_NORM)

    def _attention(self, prefix: str, x: Array, texts: Texts) -> Array:
        facts = self._facts
        projections = {
            name: linear(x, self._weight(f"{prefix}{name}_proj.weight"), self._bias(f"{prefix}{name}_proj"))
            for name in "qkv"
        }
        joined = []
        for span in texts.spans():
            q = rotate(split_heads(projections["q"][span], facts.heads), self._frequencies)
            k = rotate(split_heads(projections["k"][span], facts.kv_heads), self._frequencies)
            joined.append(attend(q, k, split_heads(projections["v"][span], facts.kv_heads)))
        name = f"{prefix}o_proj"
        return linear(np.concatenate(joined), self._weight(f"{name}.weight"), self._bias(name))

    def _feed_forward(self, prefix: str, x: Array) -> Array:
        gate, up = (
            linear(x, self._weight(f"{prefix}{name}.weight"), self._bias(f"{prefix}{name}", mlp=True))
            for name in ("gate_proj", "up_proj")
        )
        name = f"{prefix}down_proj"
        return linear(silu(gate) * up, self._weight(f"{name}.weight"), self._bias(name, mlp=True))

    def _bias(self, name: str, *, mlp: bool = False) -> Array | None:
        present = self._facts.mlp_bias if mlp else self._facts.attention_bias
        return self._weight(f"{name}.bias") if present else None

    def _norm(self, x: Array, name: str) -> Array:
        size: Array = np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(self._facts.rms_epsilon))
        return x / size * self._weight(name)


def silu(x: Array) -> Array:
    """x * sigmoid(x), by the form of the sigmoid that cannot overflow."""
    small = np.exp(-np.abs(x))
    value: Array = x * np.where(x >= 0, 1 / (1 + small), small / (1 + small))
    return value


def rotary_frequencies(head_dim: int, base: float, scaling: RopeScaling | None) -> npt.NDArray[np.float64]:
    """Radians by position for each pair of values: float64 [head_dim / 2].

    ``linear`` divides all by the factor (arXiv 2306.15595). ``llama3``: wavelengths that the original context holds
    ``high_freq_factor`` times keep theirs, those that it holds less than ``low_freq_factor`` times are stretched by the
    factor, between them both are mixed in proportion (Llama 3.1's own apply_scaling).
    """
    frequencies: npt.NDArray[np.float64] = np.power(base, -np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    turns = scaling.original_context * frequencies / (2 * np.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = np.clip((turns - low) / (high - low), 0, 1)
    mixed: npt.NDArray[np.float64] = frequencies * (keep + (1 - keep) / scaling.factor)
    return mixed


def rotate(x: Array, frequencies: npt.NDArray[np.float64]) -> Array:
    """Turns ``x`` [heads, tokens, width] by each token's position; value i pairs with value i + width/2."""
    angles = np.arange(x.shape[1])[:, None] * frequencies
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
