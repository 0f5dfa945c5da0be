"""A reference network as verification sees it, and the walk through its layers that all of them share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Protocol

import numpy as np
from hotstart.engines.checkpoints.checkpoint import Array

#: A tensor of the checkpoint by its name, as float32. It is asked for each time and never kept.
Weight = Callable[[str], Array]


class Reference(Protocol):
    """A causal network. All computing is in float32; nothing is cached between two calls.

    ``name`` says what computes: ``numpy`` or ``transformers``.
    """

    @property
    def name(self) -> str: ...

    def logits(self, ids: Sequence[int], positions: Sequence[int] | None = None) -> Array:
        """Logits after each of ``positions`` (all of them by default): float32 [len(positions), vocab].

        Raises:
            ValueError: a token is outside the vocabulary, or there is none.
        """

    def logits_of_all(
        self, texts: Sequence[Sequence[int]], positions: Sequence[Sequence[int]] | None = None
    ) -> list[Array]:
        """``logits`` of several texts, none of which sees another; each layer's weights are read once for all."""


class Layers(Protocol):
    """What a network has beside its embeddings. ``x`` is float32 [tokens of all texts, hidden]."""

    embeddings: str
    projection: str
    count: int

    def apply(self, number: int, x: Array, texts: Texts) -> Array:
        """The residual stream after layer ``number``."""

    def finish(self, x: Array) -> Array:
        """The last norm."""


@dataclass(frozen=True)
class Texts:
    """Where each text's tokens lie in the rows that all texts share."""

    lengths: tuple[int, ...]

    def spans(self) -> list[slice]:
        """One slice of rows for each text."""
        return [slice(start, end) for start, end in pairwise(accumulate(self.lengths, initial=0))]


def run(
    layers: Layers, weight: Weight, texts: Sequence[Sequence[int]], positions: Sequence[Sequence[int]] | None
) -> list[Array]:
    """Logits of ``texts`` at ``positions``, one array [positions, vocab] for each text."""
    where = Texts(tuple(len(text) for text in texts))
    x = _embed(weight(layers.embeddings), [token for text in texts for token in text])
    for number in range(layers.count):
        x = layers.apply(number, x, where)
    wanted = [np.arange(len(text)) for text in texts] if positions is None else [np.array(p, int) for p in positions]
    chosen = np.concatenate([x[span][rows] for span, rows in zip(where.spans(), wanted, strict=True)])
    logits = layers.finish(chosen) @ weight(layers.projection).T
    return np.split(logits, np.cumsum([len(rows) for rows in wanted])[:-1])


def _embed(table: Array, ids: Sequence[int]) -> Array:
    rows = np.asarray(ids, dtype=np.int64)
    if rows.size == 0 or rows.min() < 0 or rows.max() >= len(table):
        raise ValueError(f"tokens must be 0 to {len(table) - 1}, and there must be one")
    return table[rows]


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """``x`` [tokens, in] through rows ``weight`` [out, in]."""
    y = x @ weight.T
    return y if bias is None else y + bias


def attend(q: Array, k: Array, v: Array, bias: Array | None = None) -> Array:
    """Causal attention of one text -> [tokens, heads * width]; q is [heads, tokens, width], k and v [kv heads, ...].

    Queries share keys in consecutive groups (arXiv 2305.13245). ``bias`` [heads, tokens, tokens] is added to the scores
    after they are scaled by 1/sqrt(width).
    """
    group = len(q) // len(k)
    k, v = np.repeat(k, group, axis=0), np.repeat(v, group, axis=0)
    scores = q @ k.transpose(0, 2, 1) / np.float32(np.sqrt(q.shape[-1]))
    if bias is not None:
        scores = scores + bias
    scores = np.where(np.tri(q.shape[1], dtype=bool), scores, np.float32(-np.inf))
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    joined: Array = (shares @ v).transpose(1, 0, 2).reshape(q.shape[1], -1)
    return joined


def split_heads(x: Array, heads: int) -> Array:
    """[tokens, heads*width] -> [heads, tokens, width]."""
    split: Array = x.reshape(len(x), heads, -1).transpose(1, 0, 2)
    return split
