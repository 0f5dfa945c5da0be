"""Which pieces of an engine are still to be fetched, and in which order. Pure.

A file is fetched in pieces of ``PIECE_BYTES`` side by side. ``pieces.json`` beside the partial engine says which are
done, so that a restarted agent goes on where it was.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from hotstart.exchange.messages import EngineFile

PIECE_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, order=True)
class Piece:
    """Bytes ``start`` to ``end`` (exclusive) of the file at ``path``."""

    path: str
    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start

    @property
    def header(self) -> str:
        """The value of the Range header."""
        return f"bytes={self.start}-{self.end - 1}"

    @property
    def name(self) -> str:
        """As it stands in pieces.json."""
        return f"{self.path}:{self.start}"


def make_pieces(files: Iterable[EngineFile], piece_bytes: int = PIECE_BYTES) -> tuple[Piece, ...]:
    """All pieces of ``files``, the largest file first; an empty file has none."""
    ordered = sorted(files, key=lambda file: (-file.size, file.path))
    return tuple(
        Piece(file.path, start, min(start + piece_bytes, file.size))
        for file in ordered
        for start in range(0, file.size, piece_bytes)
    )


def remaining(pieces: Iterable[Piece], done: frozenset[str]) -> tuple[Piece, ...]:
    """Those not yet done, in the same order."""
    return tuple(piece for piece in pieces if piece.name not in done)


def reach(position: int, pieces: Mapping[int, Piece], done: Collection[Piece]) -> int:
    """Up to which byte a file is there without a gap, from ``position`` on; ``pieces`` are its pieces by start."""
    while (piece := pieces.get(position)) is not None and piece in done:
        position = piece.end
    return position
