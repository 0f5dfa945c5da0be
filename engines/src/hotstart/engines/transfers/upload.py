"""Sends the engine's files to the store by presigned parts, hashing them on the way.

Each part is read once, in order; its bytes stay in memory until the store has them, so that the sha256 in the manifest
is that of the bytes that were sent.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

import aiohttp
from hotstart.engines.errors import Reason, Retryable
from hotstart.engines.transfers.parts import PART_SIZE, Part, PutOutcome, decide_put, split_file, waits
from hotstart.exchange.messages import BuiltFile

log = logging.getLogger(__name__)
IN_FLIGHT = 4  # parts in memory at once
PUT_TIMEOUT = aiohttp.ClientTimeout(total=300, connect=5, sock_read=60)

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
    session: aiohttp.ClientSession,
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
    for of_file in parts:
        await _upload_file(book, folder / of_file[0].path, of_file, session, sleep)
    return tuple(book.files.values())


async def _upload_file(
    book: Book, path: Path, parts: Sequence[Part], session: aiohttp.ClientSession, sleep: Sleep
) -> None:
    digest = hashlib.sha256()
    room = asyncio.Semaphore(IN_FLIGHT)
    try:
        async with asyncio.TaskGroup() as group:
            with path.open("rb") as file:
                for part in parts:
                    await room.acquire()
                    body = await asyncio.to_thread(_read_and_hash, file.read, part.size, digest.update)
                    task = group.create_task(put_part(book, part, body, session, sleep))
                    task.add_done_callback(lambda _: room.release())
    except ExceptionGroup as failures:  # the first one is the cause, the others were cancelled or alike
        raise failures.exceptions[0] from None
    book.file_done(path.name, digest.hexdigest())
    log.info("file uploaded path=%s bytes=%d parts=%d", path.name, sum(part.size for part in parts), len(parts))


def _read_and_hash(read: Callable[[int], bytes], size: int, update: Callable[[bytes], None]) -> bytes:
    body = read(size)
    update(body)
    return body


def _md5(body: bytes) -> str:
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()


async def put_part(
    book: Book, part: Part, body: bytes, session: aiohttp.ClientSession, sleep: Sleep = asyncio.sleep
) -> None:
    """PUTs one part until the store has it.

    Raises:
        Retryable: StoreUnreachable, after too many tries.
    """
    tries = refusals = 0
    pauses = waits()
    while True:
        url = await book.url_for(part)
        status, etag, said = await _put(session, url, body)
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


async def _put(session: aiohttp.ClientSession, url: str, body: bytes) -> tuple[int | None, str, str]:
    """Status (None: no answer), etag, and what was answered in short."""
    checksum = await asyncio.to_thread(_md5, body)
    try:
        async with session.put(url, data=body, headers={"Content-MD5": checksum}, timeout=PUT_TIMEOUT) as response:
            text = await response.text(errors="replace")
            etag = response.headers.get("ETag", "")
            if response.ok and not etag:
                return None, "", "an answer without an ETag"
            return response.status, etag, f"{response.status} {' '.join(text.split())[:200]}".strip()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return None, "", f"{type(error).__name__}: {error}"
