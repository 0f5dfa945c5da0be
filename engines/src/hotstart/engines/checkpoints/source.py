"""Where a checkpoint is read from: a folder of an S3 bucket, streamed once with its sha256, resumed where it breaks.

Inspection keeps only the head of each weight file on disk (the rest is a hole of the right size), so a checkpoint needs
neither memory nor disk; a build keeps all of it.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from hotstart.engines.checkpoints.choose import ChosenFile, FileRole, ListedFile
from hotstart.engines.errors import Reason, Retryable, Terminal
from hotstart.engines.s3 import StorePlace, error_code, first_line, make_client, store_errors
from urllib3.exceptions import HTTPError

BLOCK = 1024 * 1024  # bytes read and hashed at a time
HEAD = 64 * 1024 * 1024  # bytes of a weight file that hold its head: fields, vocabulary, list of tensors
STREAMS = 4  # files read at once
RESUMES = 5  # times that one file goes on after a broken connection
GIB = 1024**3

#: Called with the number of bytes that were read since the last call; from several threads.
OnBytes = Callable[[int], None]


@dataclass(frozen=True)
class CheckpointPlace:
    """A parsed ``s3://bucket/prefix/`` or ``s3://bucket/path/file.gguf``; ``prefix`` ends with a slash or is empty."""

    uri: str
    bucket: str
    prefix: str
    only: str = ""  # the one file that the URI names


def parse_uri(uri: str) -> CheckpointPlace:
    """The place that a URI names.

    Raises:
        Terminal: InvalidSpec, it is no s3:// URI with a bucket.
    """
    bucket, _, path = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or not bucket:
        raise Terminal(Reason.INVALID_SPEC, f"checkpoint.uri {uri!r} is no s3://BUCKET/PREFIX/ URI.")
    if path.endswith((".gguf", ".safetensors")):
        folder, _, only = path.rpartition("/")
        return CheckpointPlace(uri, bucket, f"{folder}/" if folder else "", only)
    return CheckpointPlace(uri, bucket, f"{path.rstrip('/')}/" if path else "")


class S3Source:
    """Reads a checkpoint from S3. Blocking."""

    def __init__(self, place: CheckpointPlace, store: StorePlace) -> None:
        self._place = place
        self._store = store
        self._client = make_client(store)

    def list_files(self) -> tuple[ListedFile, ...]:
        """The files at the place, by name.

        Raises:
            EngineError: CheckpointNotFound where there is none, or what the store answers.
        """
        with store_errors(self._store, f"list {self._place.uri}"):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._place.bucket, Prefix=f"{self._place.prefix}{self._place.only}"
            )
            entries = [entry for page in pages for entry in page.get("Contents", ())]
        files = [
            ListedFile(entry["Key"].removeprefix(self._place.prefix), int(entry["Size"]), entry.get("ETag", ""))
            for entry in entries
            if not entry["Key"].endswith("/")
        ]
        found = sorted((f for f in files if self._place.only in ("", f.name)), key=lambda f: f.name)
        if not found:
            raise Retryable(
                Reason.CHECKPOINT_NOT_FOUND,
                f"There is no checkpoint at {self._place.uri}: upload it, or correct checkpoint.uri.",
            )
        return tuple(found)

    def stream(self, file: ListedFile) -> Iterator[bytes]:
        """The file's bytes in blocks; goes on at the same byte after a broken connection.

        Raises:
            EngineError: CheckpointChanged where the file is replaced meanwhile, or what the store answers.
        """
        at, resumes = 0, 0
        while at < file.size:
            try:
                for block in self._open(file, at).iter_chunks(BLOCK):
                    at += len(block)
                    yield block
                if at >= file.size:
                    return
                broken: Exception = EOFError(f"ended at byte {at} of {file.size}")
            except (BotoCoreError, HTTPError, OSError) as error:
                broken = error
            resumes += 1
            if resumes > RESUMES:
                raise Retryable(
                    Reason.STORE_UNREACHABLE,
                    f"Reading {file.name} of {self._place.uri} broke off {resumes} times ({first_line(broken)}): "
                    "check the network between this cluster and the store.",
                ) from broken

    def _open(self, file: ListedFile, at: int) -> Any:
        wanted: dict[str, str] = {"IfMatch": file.etag} if file.etag else {}
        if at:
            wanted["Range"] = f"bytes={at}-"
        with store_errors(self._store, f"read {file.name} of {self._place.uri}"):
            try:
                key = f"{self._place.prefix}{file.name}"
                return self._client.get_object(Bucket=self._place.bucket, Key=key, **wanted)["Body"]
            except ClientError as error:
                if error_code(error) in ("PreconditionFailed", "412"):
                    raise Retryable(
                        Reason.CHECKPOINT_CHANGED,
                        f"{file.name} of {self._place.uri} was replaced while it was read: wait until the upload ends.",
                    ) from error
                raise


def download(
    source: S3Source, files: tuple[ChosenFile, ...], folder: Path, *, on_bytes: OnBytes, heads_only: bool
) -> dict[str, str]:
    """Writes ``files`` into ``folder`` and returns their sha256 in hex by name.

    With ``heads_only`` a weight file is written as its first ``HEAD`` bytes and a hole: enough to open it.

    Raises:
        EngineError: DiskFull, or what the store answers.
    """
    on_disk = sum(kept_bytes(chosen, heads_only) for chosen in files)
    check_room(folder, on_disk)
    with ThreadPoolExecutor(STREAMS, thread_name_prefix="download") as pool:
        jobs = {
            chosen.file.name: pool.submit(
                _download_one, source, chosen.file, folder, kept_bytes(chosen, heads_only), on_bytes
            )
            for chosen in files
        }
        try:
            return {name: job.result() for name, job in jobs.items()}
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def kept_bytes(chosen: ChosenFile, heads_only: bool) -> int:
    """Bytes of a file that are written to disk. Pure."""
    return min(chosen.file.size, HEAD) if heads_only and chosen.role is FileRole.WEIGHTS else chosen.file.size


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


def _download_one(source: S3Source, file: ListedFile, folder: Path, keep: int, on_bytes: OnBytes) -> str:
    digest = hashlib.sha256()
    written = 0
    try:
        with (folder / file.name).open("wb") as target:
            for block in source.stream(file):
                digest.update(block)
                on_bytes(len(block))
                if written < keep:
                    written += target.write(block[: keep - written])
            target.truncate(file.size)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise make_disk_full(folder, keep) from error
        raise
    return digest.hexdigest()
