"""Fetches an engine from the store by presigned URLs: pieces side by side, hashed as they arrive, resumable.

The agent has no credential of the store. A URL that is refused has expired; the operator's next message brings another.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

from hotstart.engines.errors import EngineError, Reason, Retryable
from hotstart.engines.files import READ_BYTES, write_atomically
from hotstart.engines.transfers.line import Answer, Line, Patience, Transient
from hotstart.engines.transfers.ranges import PIECE_BYTES, Piece, make_pieces, reach, remaining
from hotstart.exchange.messages import EngineFile

log = logging.getLogger(__name__)
PARALLEL = 4
ATTEMPTS = 6  # of one piece
URL_WAIT_SECONDS = 60.0  # for the operator to send URLs
FIRST_PAUSE_SECONDS = 0.2  # doubles with each attempt
REMEMBER_SECONDS = 1.0  # between two writes of pieces.json
PIECES_FILE = "pieces.json"
REBUILD = "To build it again, delete the engine's folder in the store, then the Engine."


class Refused(Exception):
    """The store refuses this URL: it has expired, or was signed for something else."""


class UrlBook:
    """The newest URLs, by path; the exchange writes them, the fetch waits for them."""

    def __init__(self) -> None:
        self._urls: dict[str, str] = {}
        self._changed = asyncio.Condition()

    async def update(self, files: tuple[EngineFile, ...]) -> None:
        """Takes the URLs of a message."""
        async with self._changed:
            self._urls.update({file.path: file.url for file in files if file.url})
            self._changed.notify_all()

    async def get(self, path: str, refused: str = "") -> str:
        """A URL for ``path`` other than ``refused``.

        Raises:
            EngineError: the operator sent none in a minute.
        """
        try:
            async with asyncio.timeout(URL_WAIT_SECONDS), self._changed:
                await self._changed.wait_for(lambda: self._urls.get(path, refused) != refused)
                return self._urls[path]
        except TimeoutError:
            message = f"No usable URL for {path} came from the operator in {URL_WAIT_SECONDS:.0f} s; is it running?"
            raise Retryable(Reason.ENGINE_FETCH_FAILED, message) from None


@dataclass
class Download:
    """One engine's way from the store into ``folder``. ``on_bytes`` hears how many bytes are there."""

    urls: UrlBook
    files: tuple[EngineFile, ...]
    folder: Path
    on_bytes: Callable[[int], None] = lambda count: None
    patience: Patience = Patience()  # noqa: RUF009  # frozen
    first_pause: float = FIRST_PAUSE_SECONDS
    remember_seconds: float = REMEMBER_SECONDS
    _sizes: dict[str, int] = field(init=False)
    _done: set[Piece] = field(default_factory=set)
    _etags: dict[str, str] = field(default_factory=dict)  # by path: of the object that the pieces are of
    _spoilt: set[str] = field(default_factory=set)  # paths whose object changed during this run
    _remembered: float = -math.inf
    _there: int = 0
    _advanced: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._sizes = {file.path: file.size for file in self.files}

    async def run(self) -> dict[str, str]:
        """Fetches what is missing; path -> sha256 in hex of each file as it arrived.

        Raises:
            EngineError: the store refuses or stays away, or the disk is full.
        """
        try:
            pieces = self._prepare()
            todo: asyncio.Queue[Piece] = asyncio.Queue()
            for piece in remaining(pieces, frozenset(piece.name for piece in self._done)):
                todo.put_nowait(piece)
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(PARALLEL):
                        group.create_task(self._work(todo))
                    hashing = [group.create_task(self._hash(file)) for file in self.files]
            finally:
                self._remember()
            return {file.path: task.result() for file, task in zip(self.files, hashing, strict=True)}
        except ExceptionGroup as group_of:
            raise _explain(group_of.exceptions[0], self.files) from group_of
        except OSError as error:
            raise _explain(error, self.files) from error

    def _prepare(self) -> tuple[Piece, ...]:
        pieces = make_pieces(self.files)
        self.folder.mkdir(parents=True, exist_ok=True)
        names = self._recall()
        for file in self.files:
            path = self.folder / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists() or path.stat().st_size != file.size:
                names = {name for name in names if name.rpartition(":")[0] != file.path}
                with path.open("wb") as output:
                    if file.size:
                        os.posix_fallocate(output.fileno(), 0, file.size)  # a full disk shows here and not later
        self._done = {piece for piece in pieces if piece.name in names}
        self._there = sum(piece.size for piece in self._done)
        self.on_bytes(self._there)
        return pieces

    def _recall(self) -> set[str]:
        """Names of the pieces that an earlier run finished; none where pieces.json is missing or unreadable."""
        try:
            told = json.loads((self.folder / PIECES_FILE).read_text())
            self._etags = {str(path): str(etag) for path, etag in told["etags"].items()}
            return {str(name) for name in told["pieces"]}
        except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
            return set()

    def _remember_soon(self) -> None:
        """At most once in ``remember_seconds``: an engine of 100 GB has ten thousand pieces."""
        if time.monotonic() - self._remembered >= self.remember_seconds:
            self._remember()

    def _remember(self) -> None:
        """Not synced to the disk: what a crash of the whole node damages, the engine's digests find."""
        self._remembered = time.monotonic()
        pieces = sorted(piece.name for piece in self._done)
        text = json.dumps({"etags": self._etags, "pieces": pieces})
        write_atomically(self.folder / PIECES_FILE, text, sync=False)

    async def _work(self, todo: asyncio.Queue[Piece]) -> None:
        with closing(Line(self.patience)) as line:
            while not todo.empty():
                piece = todo.get_nowait()
                await self._fetch(piece, line)
                if piece.path in self._spoilt:  # another piece of it has just shown that this one is of an older object
                    continue
                self._done.add(piece)
                self._remember_soon()
                self._advanced.set()

    async def _fetch(self, piece: Piece, line: Line) -> None:
        """Fetches one piece, with other attempts and other URLs as needed."""
        refused, pause = "", 0.0
        for attempt in range(ATTEMPTS):
            await asyncio.sleep(pause)
            url = await self.urls.get(piece.path, refused)
            got = 0

            def count(more: int) -> None:
                nonlocal got
                got += more
                self._count(more)

            try:
                await self._fetch_once(piece, url, line, count)
                return
            except Refused as error:
                log.info("url refused, waiting for another path=%s error=%s", piece.path, error)
                refused, pause = url, 0.0
                last: Exception = error
            except Transient as error:
                log.warning("fetch failed path=%s attempt=%d error=%r", piece.name, attempt + 1, error)
                last, pause = error, self.first_pause * 2**attempt
            self._count(-got)
        reason = Reason.ENGINE_FETCH_FAILED if isinstance(last, Refused) else Reason.STORE_UNREACHABLE
        message = f"{piece.path} could not be fetched from the store in {ATTEMPTS} attempts, at last: {last}"
        raise Retryable(reason, message)

    async def _fetch_once(self, piece: Piece, url: str, line: Line, on_bytes: Callable[[int], None]) -> None:
        known = self._etags.get(piece.path, "")
        headers = {"Range": piece.header, **({"If-Match": known} if known else {})}
        answer = await line.ask("GET", url, headers)
        try:
            if answer.status == 412:
                raise self._changed(piece.path)
            _check_answer(answer, piece, self._sizes[piece.path])
            self._check_same(answer.headers.get("ETag", ""), piece.path)
            with (self.folder / piece.path).open("r+b", buffering=0) as output:
                await line.receive(answer, output.fileno(), piece.start, piece.size, on_bytes)
        except BaseException:
            line.drop()  # what it still sends is nobody's
            raise

    def _check_same(self, etag: str, path: str) -> None:
        """Raises EngineError where this piece is of another object than the pieces before it."""
        if path in self._spoilt or (etag and self._etags.setdefault(path, etag) != etag):
            raise self._changed(path)

    def _changed(self, path: str) -> EngineError:
        """Forgets all pieces of the file: the next attempt begins it anew."""
        self._spoilt.add(path)
        self._done = {piece for piece in self._done if piece.path != path}
        self._etags.pop(path, None)
        return Retryable(Reason.ENGINE_CORRUPT, f"{path} changed in the store while it was fetched. {REBUILD}")

    async def _hash(self, file: EngineFile) -> str:
        """sha256 of a file, read behind the arriving pieces while they are still in memory."""
        digest = hashlib.sha256()
        position = 0
        pieces = {piece.start: piece for piece in make_pieces((file,))}
        buffer = memoryview(bytearray(min(READ_BYTES, file.size)))
        with (self.folder / file.path).open("rb", buffering=0) as content:
            while position < file.size:
                ready = reach(position, pieces, self._done)
                if ready == position:
                    self._advanced.clear()
                    await self._advanced.wait()
                    continue
                ready = min(ready, position + PIECE_BYTES)  # a thread cannot be cancelled
                await asyncio.to_thread(_hash_on, content, digest.update, buffer, ready - position)
                position = ready
        return digest.hexdigest()

    def _count(self, count: int) -> None:
        self._there += count
        self.on_bytes(self._there)


def _hash_on(content: FileIO, update: Callable[[memoryview], None], buffer: memoryview, size: int) -> None:
    while size:
        read = content.readinto(buffer[: min(size, len(buffer))])
        if not read:
            raise OSError(errno.EIO, "the file was cut short while it was hashed")
        update(buffer[:read])
        size -= read


def _check_answer(answer: Answer, piece: Piece, size: int) -> None:
    status = answer.status
    if status == 206:
        total = answer.headers.get("Content-Range", "").rpartition("/")[2]
        if total.isdigit() and int(total) != size:
            raise _wrong_size(piece.path, f"{total} bytes", size)
        return
    if status == 200 and piece.start == 0 and piece.end == size:
        return
    if status == 416:
        raise _wrong_size(piece.path, "fewer bytes", size)
    if status in (401, 403):
        raise Refused(f"status {status}")
    if status == 404:
        message = f"{piece.path} is no longer in the store (status 404). {REBUILD}"
        raise Retryable(Reason.ENGINE_FETCH_FAILED, message)
    raise Transient(f"status {status}")


def _wrong_size(path: str, found: str, size: int) -> EngineError:
    message = f"{path} has {found} in the store, not the {size} of its manifest. {REBUILD}"
    return Retryable(Reason.ENGINE_CORRUPT, message)


def _explain(error: Exception, files: tuple[EngineFile, ...]) -> Exception:
    """What to raise for the first failure of a fetch."""
    size = sum(file.size for file in files)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        message = f"No room for the engine's {size / 1e6:.0f} MB on the pod's disk: free space on the node."
        return Retryable(Reason.DISK_FULL, message)
    if isinstance(error, OSError):
        return Retryable(Reason.ENGINE_FETCH_FAILED, f"The engine cannot be written: {error}")
    return error
