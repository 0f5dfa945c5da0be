"""Writes a safetensors file tensor by tensor, in any order: the header goes first, from shapes that are known ahead.

The library's own ``serialize`` wants every tensor in memory. Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy.typing as npt

BYTES = {"F16": 2, "BF16": 2, "I8": 1}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: ``dtype`` as the header names it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.shape) * BYTES[self.dtype]


def make_header(entries: Sequence[Entry]) -> tuple[bytes, dict[str, int]]:
    """The bytes before the data, and where in the file each tensor begins. Pure.

    Wider types come first, so that each tensor is aligned to its type.
    """
    offset, fields, starts = 0, {}, {}
    for entry in sorted(entries, key=lambda entry: -BYTES[entry.dtype]):
        span = [offset, offset + entry.size]
        fields[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": span}
        starts[entry.name] = offset
        offset += entry.size
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = struct.pack("<Q", len(text)) + text
    return head, {name: len(head) + start for name, start in starts.items()}


class SafetensorsWriter:
    """A file whose tensors may be written from several threads; on leaving the context it is synced to the disk."""

    def __init__(self, path: Path, entries: Sequence[Entry]) -> None:
        self._head, self._starts = make_header(entries)
        self.size = len(self._head) + sum(entry.size for entry in entries)
        self._path = path
        self._descriptor = -1

    def __enter__(self) -> SafetensorsWriter:
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.ftruncate(self._descriptor, self.size)
        self._put(self._head, 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)

    def write(self, name: str, values: npt.NDArray[Any], offset: int = 0) -> None:
        """Puts contiguous ``values`` at ``offset`` bytes of the tensor ``name``."""
        self._put(values.reshape(-1).view("u1").data, self._starts[name] + offset)

    def _put(self, data: bytes | memoryview, at: int) -> None:
        left = memoryview(data)
        while left:
            written = os.pwrite(self._descriptor, left, at)
            left, at = left[written:], at + written
