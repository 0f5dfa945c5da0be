"""Looks for NaN and infinity while a file of weights streams by, for inspection reads each byte once and keeps none.

A scan knows where tensors lie from the head of the file, which comes first. One that cannot make sense of the head says
nothing: what is wrong with it is said when the file is opened. GGUF has no scan: its engines are of CPUs, and their
converter looks at each tensor that it decodes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from hotstart.engines.checkpoints.finite import has_patterns, is_finite, pattern_bytes

LONGEST_HEAD = 100_000_000  # bytes; the format's own bound
#: Tensors that only hide positions, often with the lowest number there is, and are never read.
HIDING = ("masked_bias",)


class Scan(Protocol):
    """One file; ``found`` is the name of the first tensor that is not finite, or ''."""

    found: str

    def update(self, block: bytes) -> None:
        """The next bytes of the file."""


def make_scan(name: str) -> Scan | None:
    """The scan for a file by its name, or None."""
    if name.endswith(".safetensors"):
        return SafetensorsScan()
    if name.endswith((".bin", ".pt", ".pth")):
        from hotstart.engines.checkpoints.torch_scan import TorchScan

        return TorchScan()
    return None


@dataclass(frozen=True)
class Span:
    """Where the bytes of a tensor are: ``[start, stop)``, of a type that can be infinite."""

    name: str
    stored: str
    start: int
    stop: int


class Numbers:
    """The numbers of one tensor, in pieces of any length."""

    def __init__(self, stored: str) -> None:
        self._stored = stored
        self._width = pattern_bytes(stored)
        self._part = b""  # of a number that two pieces share

    def are_finite(self, data: memoryview) -> bool:
        """Of the next piece."""
        if self._part:
            missing = self._width - len(self._part)
            self._part, data = self._part + bytes(data[:missing]), data[missing:]
            if len(self._part) < self._width:
                return True
            if not is_finite(self._part, self._stored):
                return False
        whole = len(data) // self._width * self._width
        self._part = bytes(data[whole:])
        return is_finite(data[:whole], self._stored)


class SafetensorsScan:
    """Implements ``Scan``; spans come from the header."""

    def __init__(self) -> None:
        self.found = ""
        self._head: bytearray | None = bytearray()
        self._spans: Iterator[Span] = iter(())
        self._span: Span | None = None
        self._numbers: Numbers | None = None
        self._at = 0  # in the file

    def update(self, block: bytes) -> None:
        if self.found:
            return
        if self._head is not None:
            self._head += block
            block = self._read_head(self._head)
        data = memoryview(block)
        while len(data) and self._span is not None and not self.found:
            data = self._take(self._span, data)

    def _read_head(self, head: bytearray) -> bytes:
        """What follows the header, once all of it is there."""
        length = struct.unpack("<Q", head[:8])[0] if len(head) >= 8 else LONGEST_HEAD
        if len(head) < 8 + length <= 8 + LONGEST_HEAD:
            return b""
        self._head, self._at = None, 8 + length
        self._spans = iter(find_spans(bytes(head[8 : 8 + length]), 8 + length))
        self._next()
        return bytes(head[8 + length :])

    def _next(self) -> None:
        self._span = next(self._spans, None)
        self._numbers = None if self._span is None else Numbers(self._span.stored)

    def _take(self, span: Span, data: memoryview) -> memoryview:
        """Looks at what of ``data`` is the span's, and returns what comes after."""
        skipped = min(max(span.start - self._at, 0), len(data))
        piece = data[skipped : skipped + max(span.stop - self._at - skipped, 0)]
        if self._numbers is not None and not self._numbers.are_finite(piece):
            self.found = span.name
        self._at += skipped + len(piece)
        if self._at >= span.stop:
            self._next()
        return data[skipped + len(piece) :]


def find_spans(header: bytes, begin: int) -> tuple[Span, ...]:
    """The spans of a safetensors header in the order of the file; none where it is no such header. Pure."""
    try:
        entries = json.loads(header)
        found = [
            Span(name, entry["dtype"], *(begin + int(offset) for offset in entry["data_offsets"]))
            for name, entry in entries.items()
            if name != "__metadata__" and has_patterns(entry["dtype"]) and not name.endswith(HIDING)
        ]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return ()
    return tuple(sorted((span for span in found if span.stop > span.start), key=lambda span: span.start))
