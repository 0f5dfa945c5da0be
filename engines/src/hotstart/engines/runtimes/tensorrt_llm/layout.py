"""Which part of which tensor of an MPT checkpoint goes where in a TensorRT-LLM checkpoint. Pure.

Names and directions are those that TensorRT-LLM 1.2.1 reads: linear weights [out, in]; queries, keys, values, the MLP's
first layer and lm_head split by rows (out), the attention's output and the MLP's second layer by columns (in), norms
and embeddings whole on every rank, and so the biases of layers split by columns, which are added after the sum over
ranks. With fewer key-value heads than ranks, each head stands on several ranks, as upstream's LLaMA converter does it
(its MPT converter would cut a head in two).

TensorRT-LLM's MPT has norms without a bias, and a bias of lm_head that MPT lacks. Both are one thing: a norm is
followed by a linear layer, and W(x + b) = Wx + Wb, so b goes as Wb into that layer's bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hotstart.engines.checkpoints.checkpoint import Shape
from hotstart.engines.checkpoints.mpt_config import EMBEDDINGS, FINAL_NORM, MptFacts


@dataclass(frozen=True)
class Piece:
    """Rows (and columns) ``[start, stop)`` of a tensor; of no ``source``: zeros.

    With ``matrix`` and ``vector``, the product of the matrix' same rows and the vector is added.
    """

    source: str | None
    rows: tuple[int, int]
    columns: tuple[int, int] | None = None
    matrix: str | None = None
    vector: str | None = None

    @property
    def count(self) -> int:
        """Rows of the result."""
        return self.rows[1] - self.rows[0]


@dataclass(frozen=True)
class Target:
    """One tensor of one rank: its pieces, one below the other."""

    name: str
    shape: Shape
    pieces: tuple[Piece, ...]
    linear: bool = False  # a linear layer's weight, which weight-only quantization takes; lm_head is none of them


def make_layout(facts: MptFacts, ranks: int, rank: int) -> tuple[Target, ...]:
    """The tensors of ``rank`` of ``ranks``, in the order of the network: the same names for all ranks."""
    return tuple(_targets(facts, ranks, rank))


def padded_vocabulary(vocab: int, ranks: int) -> int:
    """Rows of lm_head over all ranks: TensorRT-LLM rounds the vocabulary up to a multiple of the ranks."""
    return -(-vocab // ranks) * ranks


def kv_head_range(facts: MptFacts, ranks: int, rank: int) -> tuple[int, int]:
    """Key-value heads ``[start, stop)`` of a rank; at least one, so several ranks may have the same."""
    if facts.kv_heads >= ranks:
        share = facts.kv_heads // ranks
        return rank * share, (rank + 1) * share
    head = rank // (ranks // facts.kv_heads)
    return head, head + 1


def _targets(facts: MptFacts, ranks: int, rank: int) -> Iterator[Target]:
    hidden, wide = facts.hidden, facts.intermediate
    up = _share(wide, ranks, rank)
    yield _whole("transformer.vocab_embedding.weight", EMBEDDINGS, (facts.vocab, hidden))
    for layer in range(facts.layers):
        old, new = f"transformer.blocks.{layer}", f"transformer.layers.{layer}"
        qkv = _qkv_rows(facts, ranks, rank)
        yield _whole(f"{new}.input_layernorm.weight", f"{old}.norm_1.weight", (hidden,))
        yield from _by_rows(f"{new}.attention.qkv", f"{old}.attn.Wqkv", qkv, hidden, _bias_of(facts, f"{old}.norm_1"))
        yield from _by_columns(facts, f"{new}.attention.dense", f"{old}.attn.out_proj", _share(hidden, ranks, rank))
        yield _whole(f"{new}.post_layernorm.weight", f"{old}.norm_2.weight", (hidden,))
        yield from _by_rows(f"{new}.mlp.fc", f"{old}.ffn.up_proj", (up,), hidden, _bias_of(facts, f"{old}.norm_2"))
        yield from _by_columns(facts, f"{new}.mlp.proj", f"{old}.ffn.down_proj", up)
    yield _whole("transformer.ln_f.weight", FINAL_NORM, (hidden,))
    yield from _lm_head(facts, ranks, rank)


def _qkv_rows(facts: MptFacts, ranks: int, rank: int) -> tuple[tuple[int, int], ...]:
    """Rows of this rank's queries, keys and values in ``Wqkv``: Q of all heads, then K, then V of the kv heads."""
    width = facts.head_dim
    first, last = kv_head_range(facts, ranks, rank)
    keys = facts.heads * width
    values = keys + facts.kv_heads * width
    spans = [(start + first * width, start + last * width) for start in (keys, values)]
    return (_share(keys, ranks, rank), *spans)


def _by_rows(
    name: str, source: str, spans: tuple[tuple[int, int], ...], columns: int, norm_bias: str | None
) -> Iterator[Target]:
    rows = sum(stop - start for start, stop in spans)
    weight = tuple(Piece(f"{source}.weight", span) for span in spans)
    yield Target(f"{name}.weight", (rows, columns), weight, linear=True)
    if norm_bias is not None:
        bias = (Piece(f"{source}.bias", span, matrix=f"{source}.weight", vector=norm_bias) for span in spans)
        yield Target(f"{name}.bias", (rows,), tuple(bias))


def _by_columns(facts: MptFacts, name: str, source: str, columns: tuple[int, int]) -> Iterator[Target]:
    shape = (facts.hidden, columns[1] - columns[0])
    yield Target(f"{name}.weight", shape, (Piece(f"{source}.weight", (0, facts.hidden), columns),), linear=True)
    if facts.bias:
        yield _whole(f"{name}.bias", f"{source}.bias", (facts.hidden,))


def _lm_head(facts: MptFacts, ranks: int, rank: int) -> Iterator[Target]:
    """The embedding's rows of this rank; rows beyond the vocabulary are zeros."""
    start, stop = _share(padded_vocabulary(facts.vocab, ranks), ranks, rank)
    used = (min(start, facts.vocab), min(stop, facts.vocab))
    padding = (Piece(None, (max(start, used[1]), stop)),) if stop > used[1] else ()
    rows = stop - start
    yield Target("lm_head.weight", (rows, facts.hidden), (Piece(EMBEDDINGS, used), *padding))
    if facts.bias:
        bias = Piece(None, used, matrix=EMBEDDINGS, vector=_bias_of(facts, "transformer.norm_f"))
        yield Target("lm_head.bias", (rows,), (bias, *padding))


def _bias_of(facts: MptFacts, norm: str) -> str | None:
    return f"{norm}.bias" if facts.bias else None


def _whole(name: str, source: str, shape: Shape) -> Target:
    return Target(name, shape, (Piece(source, (0, shape[0])),))


def _share(size: int, ranks: int, rank: int) -> tuple[int, int]:
    return rank * size // ranks, (rank + 1) * size // ranks
