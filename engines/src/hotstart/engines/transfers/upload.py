"""Sends the engine's files to the store by presigned parts, hashing them on the way.

Each part is read once, in order, into the buffer of the line that sends it, and stays there until the store has it: the
sha256 in the manifest is that of the bytes that were sent.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Protocol

from hotstart.engines.errors import Reason, Retryable
from hotstart.engines.files import READ_BYTES
from hotstart.engines.transfers.line import Line, Patience, Transient
from hotstart.engines.transfers.parts import PART_SIZE, Part, PutOutcome, decide_put, split_file, waits
from hotstart.exchange.messages import BuiltFile

log = logging.getLogger(__name__)
IN_FLIGHT = 4  # parts in memory at once
PATIENCE = Patience(connect=5, silence=120)

Sleep = Callable[[float], Awaitable[None]]


class Book(Protocol):
    """Who knows the upload's ids, URLs and etags: the builder's state, which the exchange keeps up to date."""

    files: dict[str, BuiltFile]

    def begin_upload(self, parts: Sequence[Part], files: Sequence[BuiltFile]) -> None:
        """Makes the files known."""

    async def url_for(self, part: Part) -> str:
        """A presigned URL to PUT the part to; waits until there is one."""

    def drop_url(self, part: Part, url: str) -> None:
        """The store refused this URL."""

    def part_done(self, part: Part, etag: str) -> None:
        """The store has the part."""

    def file_done(self, path: str, sha256: str) -> None:
        """The store has all parts of the file."""


async def upload_engine(
    book: Book,
    folder: Path,
    *,
    part_size: int = PART_SIZE,
    sleep: Sleep = asyncio.sleep,
) -> tuple[BuiltFile, ...]:
    """Uploads every file of ``folder`` and returns them with sha256, upload id and etags; ``part_size`` in bytes.

    Raises:
        EngineError: the store refuses or fails for too long.
    """
    parts = [split_file(path.name, path.stat().st_size, part_size) for path in sorted(folder.iterdir())]
    files = [BuiltFile(path=p[0].path, size=sum(part.size for part in p), sha256="") for p in parts]
    book.begin_upload([part for of_file in parts for part in of_file], files)
    free: asyncio.Queue[Sender] = asyncio.Queue()
    with ExitStack() as lines:
        for _ in range(IN_FLIGHT):
            buffer = memoryview(bytearray(min(part_size, max(file.size for file in files))))
            free.put_nowait(Sender(lines.enter_context(closing(Line(PATIENCE))), buffer))
        for of_file in parts:
            await _upload_file(book, folder / of_file[0].path, of_file, free, sleep)
    return tuple(book.files.values())


@dataclass(frozen=True)
class Sender:
    """A line to the store, and the bytes that it sends."""

    line: Line
    buffer: memoryview


async def _upload_file(
    book: Book, path: Path, parts: Sequence[Part], free: asyncio.Queue[Sender], sleep: Sleep
) -> None:
    digest = hashlib.sha256()
    try:
        async with asyncio.TaskGroup() as group:
            with path.open("rb", buffering=0) as file:
                for part in parts:
                    sender = await free.get()
                    body = sender.buffer[: part.size]
                    checksum = await sender.line.run(_read_and_hash, file, body, digest.update)
                    task = group.create_task(put_part(book, part, body, checksum, sender.line, sleep))
                    task.add_done_callback(partial(_give_back, free, sender))
    except ExceptionGroup as failures:  # the first one is the cause, the others were cancelled or alike
        raise failures.exceptions[0] from None
    book.file_done(path.name, digest.hexdigest())
    log.info("file uploaded path=%s bytes=%d parts=%d", path.name, sum(part.size for part in parts), len(parts))


def _give_back(free: asyncio.Queue[Sender], sender: Sender, _: asyncio.Task[None]) -> None:
    free.put_nowait(sender)


def _read_and_hash(file: FileIO, body: memoryview, update: Callable[[memoryview], None]) -> str:
    """Fills ``body`` and gives each block of it to ``update``; its MD5, as Content-MD5 has it."""
    checksum = hashlib.md5(usedforsecurity=False)
    read = 0
    while read < len(body):
        more = file.readinto(body[read : read + READ_BYTES])
        if not more:
            raise OSError(errno.EIO, f"{file.name!r} was cut short while it was uploaded")
        update(body[read : read + more])
        checksum.update(body[read : read + more])
        read += more
    return base64.b64encode(checksum.digest()).decode()


async def put_part(
    book: Book, part: Part, body: memoryview, checksum: str, line: Line, sleep: Sleep = asyncio.sleep
) -> None:
    """PUTs one part until the store has it.

    Raises:
        Retryable: StoreUnreachable, after too many tries.
    """
    tries = refusals = 0
    pauses = waits()
    while True:
        url = await book.url_for(part)
        status, etag, said = await _put(line, url, body, checksum)
        tries += 1
        refusals += status in (400, 401, 403)
        outcome = decide_put(status, tries, refusals)
        if outcome is PutOutcome.DONE:
            book.part_done(part, etag)
            return
        log.warning("part refused path=%s part=%d status=%s next=%s", part.path, part.number, status, outcome.value)
        if outcome is PutOutcome.GIVE_UP:
            raise Retryable(
                Reason.STORE_UNREACHABLE,
                f"The engine store does not take part {part.number} of {part.path} after {tries} tries ({said}): "
                "check the store that the operator is configured with.",
            )
        if outcome is PutOutcome.ASK_AGAIN:
            book.drop_url(part, url)
        else:
            await sleep(next(pauses))


async def _put(line: Line, url: str, body: memoryview, checksum: str) -> tuple[int | None, str, str]:
    """Status (None: no answer), etag, and what was answered in short."""
    try:
        answer = await line.ask("PUT", url, {"Content-MD5": checksum}, body)
    except Transient as error:
        return None, "", str(error)
    said = await line.run(answer.said)
    etag = answer.headers.get("ETag", "")
    if 200 <= answer.status < 300 and not etag:
        return None, "", "an answer without an ETag"
    return answer.status, etag, said
