"""What a finished conversion leaves beside its files, so that another container may build from them.

``convert`` works in a folder of its own and renames it as its last act: a folder under the final name is whole, unless
the disk lost it, which the digests tell.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

RECEIPT = "receipt.json"
FILES = "files"  # what the runtime wrote, beside the receipt
CHECKPOINT = "checkpoint"  # the checkpoint as it was downloaded


class BadReceipt(Exception):
    """There is no finished conversion, or not this one; ``str()`` completes "The conversion is not taken over: ..."."""


@dataclass(frozen=True)
class Receipt:
    """``checkpoint``: name, size in bytes, etag and role of its files, which stay for verification, in ``checkpoint/``.

    ``files``: path relative to ``files/`` -> size in bytes and sha256 in hex; empty where not ``converted``: the tools
    of the conversion want the driver of a GPU, and the checkpoint waits for the container that has one.
    """

    engine_key: str
    checkpoint_digest: str
    tokenizer_digest: str
    checkpoint_format: str
    checkpoint: tuple[tuple[str, int, str, str], ...]
    seconds: float
    converted: bool = True
    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)

    def to_json(self) -> str:
        """The receipt as text."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"


def parse_receipt(text: str) -> Receipt:
    """The inverse of ``Receipt.to_json``. Raises BadReceipt."""
    try:
        value = json.loads(text)
        files = {str(path): (int(size), str(digest)) for path, (size, digest) in value.pop("files").items()}
        checkpoint = tuple(
            (str(name), int(size), str(etag), str(role)) for name, size, etag, role in value.pop("checkpoint")
        )
        return Receipt(files=files, checkpoint=checkpoint, **value)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadReceipt(f"its {RECEIPT} cannot be read ({type(error).__name__}: {error})") from error


def write_receipt(folder: Path, receipt: Receipt) -> Receipt:
    """Writes the receipt with the digests of ``folder/files``, and returns it with them."""
    files = {path.relative_to(folder / FILES).as_posix(): _digest(path) for path in list_files(folder / FILES)}
    complete = Receipt(**{**vars(receipt), "files": files})
    with (folder / RECEIPT).open("w") as target:
        target.write(complete.to_json())
        target.flush()
        os.fsync(target.fileno())
    return complete


def read_conversion(folder: Path, engine_key: str) -> Receipt:
    """The receipt of a finished conversion for ``engine_key``, all of its files checked.

    Raises:
        BadReceipt: there is none, it is for another engine, or a file is not what it was.
    """
    try:
        receipt = parse_receipt((folder / RECEIPT).read_text())
    except OSError as error:
        raise BadReceipt(f"{folder} holds no finished one ({error.strerror})") from error
    if receipt.engine_key != engine_key:
        raise BadReceipt(f"it is for the engine {receipt.engine_key[:12]}, not {engine_key[:12]}")
    found = {path.relative_to(folder / FILES).as_posix(): path for path in list_files(folder / FILES)}
    if differing := sorted(found.keys() ^ receipt.files.keys()):
        raise BadReceipt(f"{', '.join(differing[:3])} is missing, or is more than was written")
    for name, size, *_ in receipt.checkpoint:
        if not (folder / CHECKPOINT / name).is_file() or (folder / CHECKPOINT / name).stat().st_size != size:
            raise BadReceipt(f"the checkpoint's {name} is not there as a whole")
    for name, path in found.items():
        if _digest(path) != receipt.files[name]:
            raise BadReceipt(f"{name} is not what was written")
    return receipt


def list_files(folder: Path) -> Iterator[Path]:
    """All files below ``folder``, sorted."""
    return iter(sorted(path for path in folder.rglob("*") if path.is_file()))


def _digest(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return path.stat().st_size, digest
