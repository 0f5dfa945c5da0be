"""The process inside the namespaces that carries the machine's loopback ports to addresses of the cluster.

A listening socket belongs to the network in which it was made, not to the process that accepts on it: so the asker
makes it outside and hands it in over a unix socket, and this process accepts there and connects here. It ends with the
cluster.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hotstart.cluster.layout import FORWARD_SOCKET

CHUNK = 256 * 1024
ASKER_SECONDS = 5.0
ACCEPT_SECONDS = 1.0  # as asyncio waits for its own servers


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy one direction to its end, and pass the end on."""
    try:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        # One side reset the connection: the other side must see that too.
        writer.transport.abort()


@dataclass
class Forward:
    """One loopback port of the machine and the address that it leads to."""

    host: str
    port: int
    local_port: int
    server: asyncio.Server | None = None

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_connection(self.host, self.port, limit=CHUNK)
        except OSError as problem:
            print(f"{self.host}:{self.port} cannot be reached: {problem}", flush=True)
            writer.transport.abort()
            return
        for end in (writer, inner_writer):
            end.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await asyncio.gather(_carry(reader, inner_writer), _carry(inner_reader, writer))
        finally:
            inner_writer.close()
            writer.close()


@dataclass
class Forwards:
    """All forwards, by their local port."""

    by_port: dict[int, Forward] = field(default_factory=dict)

    async def answer(self, text: bytes, handed: list[int]) -> dict[str, Any]:
        """The answer to one request; what it took of `handed` is no longer in it."""
        try:
            request = json.loads(text)
        except ValueError:
            return {"error": "the request is no JSON"}
        match request:
            case {"operation": "open", "host": str(host), "port": int(port)} if handed:
                return await self._open(host, port, handed)
            case {"operation": "close", "local_port": int(local_port)}:
                closed = self.by_port.pop(local_port, None)
                if closed and closed.server:
                    closed.server.close()
                return {"closed": closed is not None}
            case {"operation": "list"}:
                rows = [[item.host, item.port, item.local_port] for item in self.by_port.values()]
                return {"forwards": rows}
            case other:
                return {"error": f"the request is not understood: {other}"}

    async def _open(self, host: str, port: int, handed: list[int]) -> dict[str, Any]:
        try:
            listening = socket.socket(fileno=handed[0])
        except OSError as problem:
            return {"error": f"what was handed in is no socket: {problem}"}
        handed.clear()
        if (listening.family, listening.type) != (socket.AF_INET, socket.SOCK_STREAM):
            listening.close()
            return {"error": "the socket that was handed in is not of TCP"}
        listening.setblocking(False)
        forward = Forward(host, port, listening.getsockname()[1])
        forward.server = await asyncio.start_server(forward.accept, sock=listening, limit=CHUNK, backlog=1024)
        self.by_port[forward.local_port] = forward
        return {"local_port": forward.local_port}

    async def _talk(self, asker: socket.socket) -> None:
        """Hear one request and answer it."""
        with asker:
            try:
                async with asyncio.timeout(ASKER_SECONDS):
                    text, handed = await _receive(asker)
                    try:
                        answer = await self.answer(text, handed) if text else None
                    finally:
                        for descriptor in handed:
                            os.close(descriptor)
                    if answer is not None:
                        await asyncio.get_running_loop().sock_sendall(asker, json.dumps(answer).encode())
            except OSError as problem:
                print(f"an asker went away or said nothing: {problem!r}", flush=True)

    async def serve(self, control: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        talks: set[asyncio.Task[None]] = set()
        while True:
            try:
                asker, _ = await loop.sock_accept(control)
            except OSError as problem:
                # Mostly too many connections at once; those that stand are carried on, and their end makes room.
                print(f"an asker has to wait: {problem}", flush=True)
                await asyncio.sleep(ACCEPT_SECONDS)
                continue
            talk = asyncio.create_task(self._talk(asker))
            talks.add(talk)
            talk.add_done_callback(talks.discard)


async def _receive(asker: socket.socket) -> tuple[bytes, list[int]]:
    """One request, and the descriptor that was handed in with it."""
    loop, arrived = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(asker, arrived.set)
    try:
        await arrived.wait()
    finally:
        loop.remove_reader(asker)
    text, handed, _, _ = socket.recv_fds(asker, 65536, 1)
    return text, handed


def main() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each connection takes two
    place = Path(sys.argv[1] if len(sys.argv) > 1 else FORWARD_SOCKET)
    place.unlink(missing_ok=True)  # of a forwarder that ended
    control = socket.socket(socket.AF_UNIX)
    control.bind(str(place))
    control.listen(64)
    control.setblocking(False)
    asyncio.run(Forwards().serve(control))


if __name__ == "__main__":
    main()
