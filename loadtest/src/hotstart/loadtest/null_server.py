"""A server that answers at once with the same completion, by which the load generator measures itself.

Hardly HTTP: it counts bytes as far as our own requests need it, so that on one machine it takes little of the
generator's time. It runs in a process of its own.
"""

import asyncio
import multiprocessing
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection

from hotstart.loadtest.interrupts import interrupts_held

_BODY = b'{"choices":[{"text":"0","finish_reason":"length"}],"usage":{"completion_tokens":1}}'
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(_BODY), _BODY)


@asynccontextmanager
async def serve_nothing() -> AsyncIterator[str]:
    """Run the server in a child process for the length of the context; gives its URL on a free loopback port."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=run_server, args=(theirs,), daemon=True)
    with interrupts_held():
        process.start()
    theirs.close()
    try:
        port = await asyncio.to_thread(ours.recv)
        yield f"http://127.0.0.1:{port}"
    finally:
        ours.close()
        process.terminate()
        await asyncio.to_thread(process.join)
        process.close()


def run_server(pipe: Connection) -> None:
    """Entry of the server's process: serve until it is terminated; say the port through `pipe`."""
    asyncio.run(_serve(pipe))


async def _serve(pipe: Connection) -> None:
    server = await asyncio.get_running_loop().create_server(NullProtocol, "127.0.0.1", 0, backlog=1024)
    pipe.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


class NullProtocol(asyncio.Protocol):
    """Answers every request of one connection with the same completion."""

    def __init__(self) -> None:
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := _request_end(self._received)) is not None:
            self._received = self._received[end:]
            if self._transport is not None:
                self._transport.write(_ANSWER)


def _request_end(received: bytes) -> int | None:
    """Return the length of the whole request at the front of `received`, or None while it is not all there."""
    head, separator, _rest = received.partition(b"\r\n\r\n")
    if not separator:
        return None
    _before, _name, after = head.lower().partition(b"content-length:")
    end = len(head) + 4 + int(after.split(b"\r\n", 1)[0] or 0)
    return end if len(received) >= end else None
