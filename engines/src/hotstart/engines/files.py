"""Files on a disk: written whole or not at all, and read for their digest."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

READ_BYTES = 256 * 1024  # so that what was read is hashed from the processor's cache


def write_atomically(path: Path, text: str, *, sync: bool = True) -> None:
    """Readers see the old text or the new one; with ``sync`` also after a crash of the machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w") as output:
        output.write(text)
        if sync:
            output.flush()
            os.fsync(output.fileno())
    temporary.rename(path)


def hash_stream(content: object) -> str:
    """sha256 in hex of an open binary file, from where it stands."""
    digest = hashlib.sha256()
    while block := content.read(READ_BYTES):  # type: ignore[attr-defined]
        digest.update(block)
    return digest.hexdigest()
