"""The head of a GGUF file: its fields and where its tensors lie.

The format is that of ggml/docs/gguf.md, versions 2 and 3, little endian. The ``gguf`` package reads it too, but takes
seconds and 160 MB for a vocabulary of 50,000 tokens; this takes a tenth of a second, and the inspection of a checkpoint
waits for it. Weights are still decoded by ``gguf``.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGUF_MAGIC, GGMLQuantizationType, GGUFValueType
from hotstart.engines.errors import Reason, Terminal

VERSIONS = (2, 3)
LONGEST = 1 << 26  # strings and arrays above this are damage, not data
_SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: ``shape`` with rows first, ``start`` and ``size`` in bytes of the file."""

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class GgufHead:
    """Fields and tensors by their names in the file."""

    fields: dict[str, Any]
    tensors: dict[str, GgufTensor]


class _Damaged(Exception):
    """The bytes are no GGUF; the text says why."""


def read_head(path: Path) -> GgufHead:
    """The head of the file at ``path``, whose size must cover all of its tensors.

    Raises:
        Terminal: CheckpointCorrupt, it is cut short or no GGUF; UnsupportedArchitecture, an unknown version.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(data, size)
    except (_Damaged, struct.error, ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
        raise Terminal(
            Reason.CHECKPOINT_CORRUPT,
            f"{path.name} ({size} bytes) is cut short or no GGUF file: {error}. Upload it again.",
        ) from error


def _parse(data: mmap.mmap, size: int) -> GgufHead:
    cursor = _Cursor(data, size)
    if cursor.scalar("I") != GGUF_MAGIC:
        raise _Damaged("it does not begin with GGUF")
    version = cursor.scalar("I")
    if version not in VERSIONS:
        raise Terminal(Reason.UNSUPPORTED_ARCHITECTURE, f"The GGUF is of version {version}; known are 2 and 3.")
    tensor_count, field_count = cursor.length(), cursor.length()
    fields = {}
    for _ in range(field_count):
        name = cursor.string()
        fields[name] = cursor.value(GGUFValueType(cursor.scalar("I")))
    entries = [_tensor_entry(cursor) for _ in range(tensor_count)]
    alignment = int(fields.get("general.alignment", GGUF_DEFAULT_ALIGNMENT))
    base = -(-cursor.at // alignment) * alignment
    tensors = {name: GgufTensor(name, kind, shape, base + start, n) for name, kind, shape, start, n in entries}
    beyond = next((tensor for tensor in tensors.values() if tensor.start + tensor.size > size), None)
    if beyond is not None:
        raise _Damaged(f"the tensor {beyond.name} ends at byte {beyond.start + beyond.size}")
    return GgufHead(fields, tensors)


def _tensor_entry(cursor: _Cursor) -> tuple[str, GGMLQuantizationType, tuple[int, ...], int, int]:
    name = cursor.string()
    dimensions = cursor.scalar("I")
    if dimensions > 4:
        raise _Damaged(f"the tensor {name[:60]!r} has {dimensions} dimensions")
    shape = tuple(reversed([cursor.scalar("Q") for _ in range(dimensions)]))
    kind = GGMLQuantizationType(cursor.scalar("I"))
    block, width = GGML_QUANT_SIZES[kind]
    elements = 1
    for length in shape:
        elements *= length
    if shape and shape[-1] % block:
        raise _Damaged(f"the tensor {name[:60]!r} has rows that are no multiple of {block}")
    return name, kind, shape, cursor.scalar("Q"), elements // block * width


class _Cursor:
    """Reads values one after the other; every read beyond the end raises ``struct.error`` or ``_Damaged``."""

    def __init__(self, data: mmap.mmap, size: int) -> None:
        self._data = data
        self._size = size
        self.at = 0

    def scalar(self, form: str) -> Any:
        (value,) = struct.unpack_from(f"<{form}", self._data, self.at)
        self.at += struct.calcsize(f"<{form}")
        return value

    def length(self) -> int:
        value = int(self.scalar("Q"))
        if value > min(LONGEST, self._size):
            raise _Damaged(f"a length of {value} at byte {self.at - 8}")
        return value

    def string(self) -> str:
        length = self.length()
        if self.at + length > self._size:
            raise _Damaged(f"a text at byte {self.at} goes beyond the end")
        value = self._data[self.at : self.at + length].decode()
        self.at += length
        return value

    def value(self, kind: GGUFValueType) -> Any:
        if kind is GGUFValueType.STRING:
            return self.string()
        if kind is not GGUFValueType.ARRAY:
            return self.scalar(_SCALARS[kind])
        inner = GGUFValueType(self.scalar("I"))
        count = self.length()
        if inner in _SCALARS:
            return self._scalars(_SCALARS[inner], count)
        read: Callable[[], Any] = self.string if inner is GGUFValueType.STRING else lambda: self.value(inner)
        return [read() for _ in range(count)]

    def _scalars(self, form: str, count: int) -> list[Any]:
        values = list(struct.unpack_from(f"<{count}{form}", self._data, self.at))
        self.at += struct.calcsize(f"<{count}{form}")
        return values
