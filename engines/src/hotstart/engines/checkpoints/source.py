"""Reading a checkpoint from wherever it stands: listed, streamed once with its sha256, resumed where it breaks.

A ``Source`` is a store (``s3_source``), a folder (``folder_source``: a mounted claim, or this machine) or the hub
(``hub_source``). Inspection keeps only the ends of each weight file on disk
(the rest is a hole of the right size), so a checkpoint needs neither memory nor disk; a build keeps all of it, or uses
it where it lies.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hotstart.engines.checkpoints.choose import ChosenFile, FileRole, ListedFile
from hotstart.engines.checkpoints.finite import make_not_finite
from hotstart.engines.checkpoints.places import CheckpointPlace, FolderPlace, HubPlace
from hotstart.engines.checkpoints.scan import make_scan
from hotstart.engines.errors import Reason, Retryable
from hotstart.engines.s3 import StorePlace

BLOCK = 1024 * 1024  # bytes read and hashed at a time
HEAD = 64 * 1024 * 1024  # bytes of a weight file that hold its head: fields, vocabulary, list of tensors
TAIL = 4 * 1024 * 1024  # bytes at its end, where the list of a PyTorch file's records is
STREAMS = 4  # files read at once
RESUMES = 5  # times that one file goes on after a broken connection
GIB = 1024**3

#: Called with the number of bytes that were read since the last call; from several threads.
OnBytes = Callable[[int], None]
OnBlock = Callable[[bytes], None]


class BrokenStream(Exception):
    """A connection ended before the file did; the text says how."""


class Source(Protocol):
    """A checkpoint's files, read-only. Blocking; ``stream`` is called from several threads."""

    @property
    def where(self) -> str:
        """The URI, for messages."""

    def list_files(self) -> tuple[ListedFile, ...]:
        """The files directly in the folder (or the one that the URI names), by name.

        Raises:
            EngineError: CheckpointNotFound where there is none, or what the store answers.
        """

    def blocks(self, file: ListedFile, start: int) -> Iterator[bytes]:
        """The file's bytes from ``start`` on, over one connection.

        Raises:
            BrokenStream: it broke off; the caller goes on with another ``start``.
            EngineError: CheckpointChanged where the file was replaced meanwhile, or what the store answers.
        """

    def local_path(self, file: ListedFile) -> Path | None:
        """Where the file already lies on this machine's disks, if it does."""

    def check_unchanged(self, file: ListedFile) -> None:
        """For a file that is used where it lies: whether it is still the one that was listed.

        Raises:
            Retryable: CheckpointChanged.
        """


@dataclass(frozen=True)
class HubAccess:
    """Which hub, and who asks; ``credentials_from`` is said to people."""

    endpoint: str = "https://huggingface.co"
    token: str = ""
    credentials_from: str = "the Secret"


def open_source(place: CheckpointPlace, store: StorePlace, hub: HubAccess) -> Source:
    """The source for a place; libraries are loaded only for the one that is asked for.

    Raises:
        Terminal: InvalidSpec, the store cannot be addressed.
    """
    if isinstance(place, FolderPlace):
        from hotstart.engines.checkpoints.folder_source import FolderSource

        return FolderSource(place)
    if isinstance(place, HubPlace):
        from hotstart.engines.checkpoints.hub_source import HubSource

        return HubSource(place, hub)
    from hotstart.engines.checkpoints.s3_source import S3Source

    return S3Source(place, store)


def pick_files(place: CheckpointPlace, files: list[ListedFile]) -> tuple[ListedFile, ...]:
    """The files that the place means, by name.

    Raises:
        Retryable: CheckpointNotFound, there is none.
    """
    found = sorted((file for file in files if place.only in ("", file.name)), key=lambda file: file.name)
    if not found:
        raise Retryable(
            Reason.CHECKPOINT_NOT_FOUND,
            f"There is no checkpoint at {place.uri}: upload it, or correct checkpoint.uri.",
        )
    return tuple(found)


def stream(source: Source, file: ListedFile) -> Iterator[bytes]:
    """The whole file in blocks; goes on at the same byte after a broken connection.

    Raises:
        EngineError: CheckpointChanged where the file is replaced meanwhile, or what the store answers.
    """
    at, resumes = 0, 0
    while at < file.size:
        try:
            for block in source.blocks(file, at):
                at += len(block)
                yield block
            if at >= file.size:
                return
            broken = BrokenStream(f"ended at byte {at} of {file.size}")
        except BrokenStream as error:
            broken = error
        resumes += 1
        if resumes > RESUMES:
            raise Retryable(
                Reason.STORE_UNREACHABLE,
                f"Reading {file.name} of {source.where} broke off {resumes} times ({broken}): "
                "check the network between this cluster and the store.",
            ) from broken


def download(
    source: Source, files: tuple[ChosenFile, ...], folder: Path, *, on_bytes: OnBytes, heads_only: bool
) -> dict[str, str]:
    """Puts ``files`` into ``folder`` and returns their sha256 in hex by name; a file that lies here already is linked.

    With ``heads_only`` a weight file is written as its two ends and a hole: enough to open it. The weights are looked
    at as they pass (``scan``).

    Raises:
        EngineError: DiskFull, CheckpointCorrupt where a file is not the one that its list says or a tensor holds NaN or
            Inf, or what the store answers.
    """
    remote = [chosen for chosen in files if source.local_path(chosen.file) is None]
    check_room(folder, sum(kept_bytes(chosen, heads_only) for chosen in remote))
    with ThreadPoolExecutor(STREAMS, thread_name_prefix="download") as pool:
        jobs = {
            chosen.file.name: pool.submit(
                _read_one, source, chosen.file, folder, kept_bytes(chosen, heads_only), on_bytes
            )
            for chosen in files
        }
        try:
            return {name: job.result() for name, job in jobs.items()}
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def kept_bytes(chosen: ChosenFile, heads_only: bool) -> int:
    """Bytes of a file that are written to disk. Pure."""
    return min(chosen.file.size, HEAD + TAIL) if heads_only and chosen.role is FileRole.WEIGHTS else chosen.file.size


def check_room(folder: Path, needed: int) -> None:
    """Raises Retryable (DiskFull) where ``needed`` bytes do not fit."""
    usage = shutil.disk_usage(folder)
    if usage.free < needed:
        raise make_disk_full(folder, needed)


def make_disk_full(folder: Path, needed: int) -> Retryable:
    """The error for a full scratch disk, with the sizes."""
    usage = shutil.disk_usage(folder)
    return Retryable(
        Reason.DISK_FULL,
        f"The scratch disk {folder} has {usage.free / GIB:.2f} GiB free of {usage.total / GIB:.2f} GiB, "
        f"{needed / GIB:.2f} GiB are needed: give the nodes more ephemeral storage.",
    )


def _read_one(source: Source, file: ListedFile, folder: Path, keep: int, on_bytes: OnBytes) -> str:
    here = source.local_path(file)
    digests, scan = _Digests(file), make_scan(file.name)

    def count(block: bytes) -> None:
        digests.update(block)
        if scan is not None:
            scan.update(block)
        on_bytes(len(block))

    if here is None:
        _write(source, file, folder / file.name, keep, count)
    else:
        for block in stream(source, file):
            count(block)
        (folder / file.name).symlink_to(here)
    digests.check(source.where)
    if scan is not None and scan.found:
        raise make_not_finite(f"{scan.found} of {file.name}")
    return digests.sha256


def _write(source: Source, file: ListedFile, path: Path, keep: int, count: OnBlock) -> None:
    """Writes the first bytes and the last ``TAIL`` of a file, ``keep`` together, and a hole between them."""
    head, tail, at = (keep, file.size, 0) if keep == file.size else (keep - TAIL, file.size - TAIL, 0)
    try:
        with path.open("wb") as target:
            for block in stream(source, file):
                count(block)
                if at < head:
                    target.write(block[: head - at])
                if at + len(block) > max(tail, head):
                    skipped = max(max(tail, head) - at, 0)
                    target.seek(at + skipped)
                    target.write(block[skipped:])
                at += len(block)
            target.truncate(file.size)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise make_disk_full(path.parent, keep) from error
        raise


class _Digests:
    """sha256 of a file, and what its list says of it: the sha256 of LFS, or git's sha1 of a small file."""

    def __init__(self, file: ListedFile) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._git = None
        if file.git_oid and not file.sha256:
            self._git = hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)

    def update(self, block: bytes) -> None:
        self._sha256.update(block)
        if self._git is not None:
            self._git.update(block)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def check(self, where: str) -> None:
        """Raises Retryable (CheckpointCorrupt) where the bytes are not those that were listed."""
        found, said = self.sha256, self._file.sha256
        if self._git is not None:
            found, said = self._git.hexdigest(), self._file.git_oid
        if said and found != said:
            raise Retryable(
                Reason.CHECKPOINT_CORRUPT,
                f"{self._file.name} of {where} has the digest {found[:16]}..., {said[:16]}... is listed: the download "
                "or the stored file is damaged; try again, and upload it again if it stays.",
            )
