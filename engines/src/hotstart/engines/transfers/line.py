"""A connection to the store, kept from request to request, whose bytes go straight between socket and memory.

What moves bytes blocks, in a thread of its own, and leaves the interpreter to the other threads while it does: four
lines, what they write and what hashes it share the machine's cores, which one event loop would not
(docs/adr/0019-transfers-of-our-own.md).
"""

from __future__ import annotations

import asyncio
import http.client
import os
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import ParamSpec, TypeVar
from urllib.parse import urlsplit

from hotstart.engines.files import READ_BYTES

P = ParamSpec("P")
T = TypeVar("T")
SAID_CHARACTERS = 200


class Transient(Exception):
    """The store did not answer, broke off, or said that it cannot just now."""


@dataclass(frozen=True)
class Patience:
    """Seconds that a store may take: to be reached, for each step of a request, and until a received body is whole.

    Sending a body is one step.
    """

    connect: float = 10.0
    silence: float = 20.0
    total: float = 120.0


@dataclass(frozen=True)
class Answer:
    """Status and headers of the store's answer; its body is read by the line."""

    status: int
    headers: http.client.HTTPMessage
    until: float  # by the monotonic clock: when the request's time is over
    body: http.client.HTTPResponse = field(repr=False)

    def said(self) -> str:
        """The body of an answer that is no success, in short."""
        try:
            text = self.body.read(SAID_CHARACTERS * 4).decode(errors="replace")
        except (OSError, http.client.HTTPException):
            return str(self.status)
        return f"{self.status} {' '.join(text.split())[:SAID_CHARACTERS]}".strip()


class Line:
    """One connection and the thread that waits for it. To be closed, which ends what still runs."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._threads = ThreadPoolExecutor(1, "transfer")
        self._connection: http.client.HTTPConnection | None = None
        self._socket: socket.socket | None = None  # the answer may still need it when the connection has let it go
        self._place = ("", "")
        self._buffer = memoryview(bytearray(0))

    async def ask(self, method: str, url: str, headers: Mapping[str, str], body: memoryview | bytes = b"") -> Answer:
        """Sends a request and returns the head of the answer. One that came over a kept connection is sent again.

        Raises:
            Transient: no answer.
        """
        parts = urlsplit(url)
        ended = self._connection is not None and self._connection.sock is None  # the last answer said so
        if ended or (parts.scheme, parts.netloc) != self._place:
            self.drop()
        fresh = self._connection is None
        if self._connection is None:
            self._connection = await _connect(parts.scheme, parts.hostname or "", parts.port, self._patience)
            self._socket = self._connection.sock
            self._place = (parts.scheme, parts.netloc)
        path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        until = time.monotonic() + self._patience.total
        try:
            found = await self.run(_ask, self._connection, method, path, headers, body)
        except (OSError, http.client.HTTPException) as error:
            self.drop()
            if not fresh and isinstance(error, (ConnectionError, http.client.BadStatusLine)):
                return await self.ask(method, url, headers, body)  # the store had closed it meanwhile
            raise Transient(f"{type(error).__name__}: {error}") from error
        return Answer(found.status, found.headers, until, found)

    async def receive(self, answer: Answer, file: int, place: int, size: int, on_bytes: Callable[[int], None]) -> None:
        """Writes the answer's body to ``place`` of the open ``file``; it must have ``size`` bytes.

        ``on_bytes`` hears in the event loop how many more are there.

        Raises:
            Transient: the store broke off, or sends more or fewer bytes.
            OSError: the disk.
        """
        if not self._buffer:
            self._buffer = memoryview(bytearray(READ_BYTES))
        loop = asyncio.get_running_loop()

        def count(more: int) -> None:
            loop.call_soon_threadsafe(on_bytes, more)

        await self.run(_receive, answer, self._buffer, file, place, size, count)

    async def run(self, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Calls it in the line's thread; where the caller is cancelled, the connection goes, and with it the call."""
        running = asyncio.get_running_loop().run_in_executor(self._threads, lambda: function(*arguments, **named))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            self.drop()
            await asyncio.wait((running,))
            running.exception()
            raise

    def drop(self) -> None:
        """Closes the connection, also under a thread that waits for it; the next request makes another."""
        if self._socket is not None:
            with suppress(OSError):  # the store was first
                self._socket.shutdown(socket.SHUT_RDWR)
        if self._connection is not None:
            self._connection.close()
        self._connection = self._socket = None

    def close(self) -> None:
        """The end of the line."""
        self.drop()
        self._threads.shutdown(wait=False)


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


async def _connect(scheme: str, host: str, port: int | None, patience: Patience) -> http.client.HTTPConnection:
    """Raises Transient: the store is not reached."""
    kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
    port = port or kind.default_port
    try:
        async with asyncio.timeout(patience.connect):
            found = await _open(host, port, patience.connect)
            found.settimeout(patience.silence)
            if scheme == "https":
                found = await asyncio.to_thread(_tls().wrap_socket, found, server_hostname=host)
    except (OSError, TimeoutError) as error:
        raise Transient(f"{host}:{port} is not reached: {type(error).__name__}: {error}") from error
    connection = kind(host, port)
    connection.sock, connection.auto_open = found, 0
    return connection


async def _open(host: str, port: int, seconds: float) -> socket.socket:
    """A connection to the first of the host's addresses that takes one; each has its share of the seconds.

    Raises OSError.
    """
    loop = asyncio.get_running_loop()
    failed: OSError | None = None
    addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for family, kind, protocol, _, address in addresses:
        found = socket.socket(family, kind, protocol)
        try:
            found.setblocking(False)
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(seconds / len(addresses)):
                await loop.sock_connect(found, address)
        except BaseException as error:
            found.close()
            if not isinstance(error, OSError):
                raise
            failed = error
        else:
            return found
    raise failed or OSError(f"{host} has no address")


def _ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    headers: Mapping[str, str],
    body: memoryview | bytes,
) -> http.client.HTTPResponse:
    try:
        connection.request(method, path, body or None, dict(headers))
    except (ConnectionError, ssl.SSLEOFError):
        with suppress(OSError, http.client.HTTPException):  # a store that refuses answers, and closes before the body
            return connection.getresponse()
        raise
    return connection.getresponse()


def _receive(
    answer: Answer, buffer: memoryview, file: int, place: int, size: int, count: Callable[[int], None]
) -> None:
    received = 0
    while received < size:
        filled = min(len(buffer), size - received)
        block = buffer[:filled]
        _fill(answer, block)
        _write(file, block, place + received)
        received += filled
        count(filled)
    try:
        more = answer.body.read(1)
    except (OSError, http.client.HTTPException) as error:
        raise Transient(f"{type(error).__name__}: {error}") from error
    if more:
        raise Transient(f"more than the {size} bytes asked for")


def _fill(answer: Answer, block: memoryview) -> None:
    """Raises Transient."""
    filled = 0
    while filled < len(block):
        if time.monotonic() > answer.until:
            raise Transient("the request's time is over")
        try:
            more = answer.body.readinto(block[filled:])
        except (OSError, http.client.HTTPException) as error:
            raise Transient(f"{type(error).__name__}: {error}") from error
        if not more:
            raise Transient(f"it ends {len(block) - filled} bytes or more too early")
        filled += more


def _write(file: int, block: memoryview, place: int) -> None:
    """Raises OSError."""
    while block:
        written = os.pwrite(file, block, place)
        block, place = block[written:], place + written
