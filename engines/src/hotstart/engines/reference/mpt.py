"""MPT in numpy, from the papers and from llm-foundry's definition of the network.

LayerNorm (arXiv 1607.06450), ALiBi (arXiv 2108.12409), grouped queries (arXiv 2305.13245), GELU by the error function
(arXiv 1606.08415). Order of things as in llm-foundry's ``models/layers/attention.py``: one linear layer for queries,
keys and values, clipped as a whole to ±``clip_qkv`` and then split; the bias of ALiBi joins the scores after they are
scaled. Tensors by their own names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from hotstart.engines.checkpoints.checkpoint import Array
from hotstart.engines.checkpoints.mpt_config import EMBEDDINGS, MptFacts
from hotstart.engines.reference.network import Texts, Weight, attend, linear, run, split_heads

_GRID = np.linspace(-6, 6, 12 * 4096 + 1)  # beyond it the error function is ±1 in float64 to 2e-17
_ERF = np.array([math.erf(x) for x in _GRID])


class MptReference:
    """Implements ``Reference`` for an MPT checkpoint."""

    name = "numpy"

    def __init__(self, facts: MptFacts, weight: Weight) -> None:
        self.embeddings = EMBEDDINGS
        self.projection = EMBEDDINGS
        self.count = facts.layers
        self._facts = facts
        self._weight = weight
        self._slopes = alibi_slopes(facts.heads, facts.alibi_bias_max)

    def logits(self, ids: Sequence[int], positions: Sequence[int] | None = None) -> Array:
        return self.logits_of_all([ids], None if positions is None else [positions])[0]

    def logits_of_all(
        self, texts: Sequence[Sequence[int]], positions: Sequence[Sequence[int]] | None = None
    ) -> list[Array]:
        return run(self, self._weight, texts, positions)

    def apply(self, number: int, x: Array, texts: Texts) -> Array:
        prefix = f"transformer.blocks.{number}."
        x = x + self._attention(f"{prefix}attn.", self._norm(x, f"{prefix}norm_1"), texts)
        wide = gelu(self._linear(self._norm(x, f"{prefix}norm_2"), f"{prefix}ffn.up_proj"))
        return x + self._linear(wide, f"{prefix}ffn.down_proj")

    def finish(self, x: Array) -> Array:
        return self._norm(x, "transformer.norm_f")

    def _attention(self, prefix: str, x: Array, texts: Texts) -> Array:
        facts = self._facts
        qkv = self._linear(x, f"{prefix}Wqkv")
        if facts.clip_qkv is not None:
            qkv = np.clip(qkv, -np.float32(facts.clip_qkv), np.float32(facts.clip_qkv))
        q, k, v = np.split(qkv, [facts.hidden, facts.hidden + facts.kv_heads * facts.head_dim], axis=-1)
        joined = []
        for span, length in zip(texts.spans(), texts.lengths, strict=True):
            keys, values = (split_heads(part[span], facts.kv_heads) for part in (k, v))
            joined.append(attend(split_heads(q[span], facts.heads), keys, values, alibi_bias(self._slopes, length)))
        return self._linear(np.concatenate(joined), f"{prefix}out_proj")

    def _linear(self, x: Array, name: str) -> Array:
        return linear(x, self._weight(f"{name}.weight"), self._weight(f"{name}.bias") if self._facts.bias else None)

    def _norm(self, x: Array, name: str) -> Array:
        bias = self._weight(f"{name}.bias") if self._facts.bias else None
        return layer_norm(x, self._weight(f"{name}.weight"), bias, self._facts.norm_epsilon)


def layer_norm(x: Array, gain: Array, bias: Array | None, epsilon: float) -> Array:
    """Rows of ``x`` with mean 0 and variance 1, times ``gain``, plus ``bias``."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.mean(centred * centred, axis=-1, keepdims=True)
    normed: Array = centred / np.sqrt(variance + np.float32(epsilon)) * gain
    return normed if bias is None else normed + bias


def alibi_slopes(heads: int, bias_max: float) -> Array:
    """What one token of distance costs, for each head: float32 [heads].

    For a power of two the slopes are 2^(-bias_max * i / heads), i = 1 to heads. For another number they are those of
    the next power of two: first the 2nd, 4th, ..., then the 1st, 3rd, ..., as many as there are heads (llm-foundry's
    ``gen_slopes``; with bias_max 8 it is the paper's own rule).
    """
    whole = 1 << (heads - 1).bit_length()
    slopes = 2.0 ** (-bias_max * np.arange(1, whole + 1) / whole)
    if whole != heads:
        slopes = np.concatenate([slopes[1::2], slopes[::2]])[:heads]
    return slopes.astype(np.float32)


def alibi_bias(slopes: Array, length: int) -> Array:
    """Bias of each head's scores [heads, query, key]: minus the slope for each token between them.

    llm-foundry adds slope * (key - last key) to all queries alike, which differs by a constant in each row and so is
    the same after the softmax; distances are nearer to zero and lose less in float32.
    """
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    return slopes[:, None, None] * distance.astype(np.float32)


def gelu(x: Array) -> Array:
    """x/2 * (1 + erf(x/sqrt 2)), the exact form (PyTorch's ``approximate="none"``)."""
    value: Array = x * (0.5 + 0.5 * erf(x * np.float32(math.sqrt(0.5)))).astype(np.float32)
    return value


def erf(x: Array) -> npt.NDArray[np.float64]:
    """The error function to 1e-8: the standard library's values at steps of 1/4096, straight lines between them.

    A line is off by step^2 / 8 times the second derivative, which is below 1; float32 itself is off by 6e-8 near 1.
    """
    value: npt.NDArray[np.float64] = np.interp(x, _GRID, _ERF)
    return value
