"""HTTP/1.1 connections that write a request within microseconds of being told to.

A general client builds headers, tasks and timers between the intended send time and the write: about 0.4 ms on one
core, much of a drift budget of 1 ms. Here a request is bytes made ahead, the write is a plain call, and answers come
back as calls in the instant they arrive. Parsing is httptools' (llhttp, the parser of Node.js).
"""

import asyncio
import socket
import ssl
import time
from typing import Protocol
from urllib.parse import urlsplit

import httptools

# Shorter than the keep-alive time of common servers, so that a request is seldom written to a connection that the
# server is about to close.
_IDLE_S = 15.0


class BadHttp(Exception):
    """The peer sent something that is not HTTP/1.1."""


class Receiver(Protocol):
    """Whoever waits for one answer. After `finished` or `lost` nothing more is called."""

    def received(self, data: bytes) -> None:
        """A piece of the body has come."""

    def finished(self, status: int) -> None:
        """The last byte of the answer has come."""

    def lost(self, error: Exception | None, *, began: bool) -> None:
        """The connection ended first, by `error` or by the peer; `began`: after the head of the answer had come."""


class Connection(asyncio.Protocol):
    """One connection of a pool; carries one request at a time and returns to the pool by itself."""

    def __init__(self, pool: "ConnectionPool") -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._receiver: Receiver | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._status = 0
        self._head_came = False
        self._until_close = False
        self._complete = False
        self._reusable = False
        self.idle_since = 0.0

    def start(self, request: bytes, receiver: Receiver) -> None:
        """Write `request` now; its answer goes to `receiver`."""
        assert self._transport is not None
        self._receiver = receiver
        self._parser = httptools.HttpResponseParser(self)
        self._head_came = self._complete = False
        self._until_close = True
        self._transport.write(request)

    def abort(self) -> None:
        """Hang up at once; the receiver is told nothing more."""
        self._receiver = None
        if self._transport is not None:
            self._transport.abort()

    @property
    def usable(self) -> bool:
        """Whether another request may be written."""
        return self._transport is not None and not self._transport.is_closing()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._receiver is None or self._parser is None:  # bytes that nobody asked for
            self.abort()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            receiver = self._receiver
            self.abort()
            if isinstance(error, httptools.HttpParserCallbackError) and error.__context__ is not None:
                raise error.__context__ from None
            receiver.lost(BadHttp(f"the answer is no HTTP/1.1: {error}"), began=self._head_came)
            return
        if self._complete:
            self._finish(self._reusable)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._pool.forget(self)
        if self._receiver is None:
            return
        if exc is None and self._head_came and self._until_close:  # RFC 9112, 6.3: such a body ends with its connection
            self._finish(False)
            return
        receiver, self._receiver = self._receiver, None
        receiver.lost(exc, began=self._head_came)

    # What the parser calls.

    def on_header(self, name: bytes, _value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._until_close = False

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        if self._complete:  # a second answer to one request: the first stands, and the connection is not to be trusted
            self._reusable = False
            return
        self._status = self._parser.get_status_code()
        self._head_came = self._status >= 200

    def on_body(self, data: bytes) -> None:
        if self._receiver is not None and not self._complete:
            self._receiver.received(data)

    def on_message_complete(self) -> None:
        assert self._parser is not None
        if self._complete:
            return
        if self._status < 200:  # an interim answer, such as 100 Continue; the answer follows
            self._until_close = True
            return
        self._complete = True
        self._reusable = self._parser.should_keep_alive()

    def _finish(self, reusable: bool) -> None:
        assert self._receiver is not None
        receiver, self._receiver = self._receiver, None
        self._parser = None  # it holds this connection in a cycle
        if reusable and self.usable:
            self._pool.put_back(self)
        elif self._transport is not None:
            self._transport.close()
        receiver.finished(self._status)


class ConnectionPool:
    """Connections to one server, as many as are needed at once; the last used is used next."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._addresses: list[tuple[socket.AddressFamily, str]] = []
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()

    def take(self) -> Connection | None:
        """Return a connection that stands ready, or None when a new one must be opened."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and time.monotonic() - connection.idle_since < _IDLE_S:
                return connection
            connection.abort()
        return None

    async def open(self) -> Connection:
        """Return a new connection. Raises OSError (which TLS errors are too) when none of the addresses takes it."""
        loop = asyncio.get_running_loop()
        if not self._addresses:
            found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            self._addresses = [(family, str(address[0])) for family, _type, _proto, _name, address in found]
        failure: OSError | None = None
        for address in tuple(self._addresses):
            family, host = address
            server_hostname = self._host if self._tls is not None else None
            try:
                _, connection = await loop.create_connection(
                    lambda: Connection(self),
                    host,
                    self._port,
                    family=family,
                    ssl=self._tls,
                    server_hostname=server_hostname,
                )
            except OSError as error:
                failure = failure or error
                continue
            self._addresses = [address]  # the others were only other ways to the same server
            self._open.add(connection)
            return connection
        assert failure is not None
        raise failure

    def put_back(self, connection: Connection) -> None:
        """Keep a connection for the next request."""
        connection.idle_since = time.monotonic()
        self._idle.append(connection)

    def forget(self, connection: Connection) -> None:
        """Drop a connection that has ended."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    async def close(self) -> None:
        """Hang up on all connections and return when they are gone."""
        for connection in tuple(self._open):
            connection.abort()
        while self._open:  # noqa: ASYNC110 - each is gone after a turn of the loop
            await asyncio.sleep(0)
