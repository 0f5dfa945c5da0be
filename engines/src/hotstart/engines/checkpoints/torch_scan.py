"""The scan of a PyTorch file: its records pass one after the other, the list of tensors first.

``torch.save`` writes a ZIP archive whose records are stored as they are, each behind a header of its own; their sizes
follow them, so those of the weights are taken from the list of tensors. A file in another order says nothing: without a
list before the weights there is no telling what they are.
"""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass

from hotstart.engines.checkpoints.scan import HIDING, LONGEST_HEAD, Numbers
from hotstart.engines.checkpoints.torch_head import list_storages

_HEADER = struct.Struct("<4s5H3L2H")
_BEGINS = b"PK\x03\x04"
_SIGNATURE = re.compile(rb"PK(?:\x03\x04|\x07\x08|\x01\x02)")
_LIST = "/data.pkl"
_STORAGE = re.compile(r"/data/([^/]+)$")


@dataclass
class _Record:
    """A record whose bytes pass now: ``left`` of them, looked at where ``numbers`` is set."""

    name: str
    left: int
    numbers: Numbers | None


class TorchScan:
    """Implements ``Scan``."""

    def __init__(self) -> None:
        self.found = ""
        self._buffer = bytearray()  # of what lies between storages: headers and small records
        self._storages: dict[str, tuple[str, str, int]] | None = None  # key -> tensor, type or '', bytes
        self._record: _Record | None = None
        self._over = False

    def update(self, block: bytes) -> None:
        data = memoryview(block)
        while len(data) and not (self._over or self.found):
            if self._record is not None:
                data = self._pass(self._record, data)
                continue
            self._buffer += data
            data = memoryview(self._find_storage())
            self._over = self._over or len(self._buffer) > LONGEST_HEAD

    def _pass(self, record: _Record, data: memoryview) -> memoryview:
        """Looks at what of ``data`` is the record's, and returns what comes after."""
        piece = data[: record.left]
        if record.numbers is not None and not record.numbers.are_finite(piece):
            self.found = record.name
        record.left -= len(piece)
        if record.left == 0:
            self._record = None
        return data[len(piece) :]

    def _find_storage(self) -> bytes:
        """Goes from record to record up to one that holds weights, and returns what there is of it."""
        while not self._over:
            start = self._buffer.find(_BEGINS)
            if start < 0 or len(self._buffer) < start + _HEADER.size:
                return b""
            *_, name_length, extra_length = _HEADER.unpack_from(self._buffer, start)
            name_at = start + _HEADER.size
            body = name_at + name_length + extra_length
            if len(self._buffer) < body:
                return b""
            name = self._buffer[name_at : name_at + name_length].decode(errors="replace")
            if key := _STORAGE.search(name):
                return self._begin_storage(key[1], body)
            end = _SIGNATURE.search(self._buffer, body)
            if end is None:
                return b""
            if name.endswith(_LIST):
                self._storages = list_storages(io.BytesIO(self._buffer[body : end.start()]))
            del self._buffer[: end.start()]
        return b""

    def _begin_storage(self, key: str, body: int) -> bytes:
        rest = bytes(self._buffer[body:])
        self._buffer.clear()
        if self._storages is None or key not in self._storages:
            self._over = True
            return b""
        name, stored, size = self._storages[key]
        looked_at = bool(stored and name) and not name.endswith(HIDING)
        self._record = _Record(name, size, Numbers(stored) if looked_at else None) if size else None
        return rest
