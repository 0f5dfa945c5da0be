"""The process inside the namespaces that carries the machine's loopback ports to addresses of the cluster.

A listening socket belongs to the network in which it was made, not to the process that accepts on it: so the asker
makes it outside and hands it in over a unix socket, and this process accepts there and connects here. It ends with the
cluster.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hotstart.cluster.layout import FORWARD_SOCKET

CHUNK = 256 * 1024


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

    async def answer(self, request: dict[str, Any], handed: list[int]) -> dict[str, Any]:
        match request["operation"]:
            case "open":
                listening = socket.socket(fileno=handed[0])
                listening.setblocking(False)
                forward = Forward(request["host"], request["port"], listening.getsockname()[1])
                forward.server = await asyncio.start_server(forward.accept, sock=listening, limit=CHUNK, backlog=1024)
                self.by_port[forward.local_port] = forward
                return {"local_port": forward.local_port}
            case "close":
                closed = self.by_port.pop(request["local_port"], None)
                if closed and closed.server:
                    closed.server.close()
                return {"closed": closed is not None}
            case "list":
                rows = [[item.host, item.port, item.local_port] for item in self.by_port.values()]
                return {"forwards": rows}
            case other:
                return {"error": f"unknown operation {other}"}

    async def serve(self, control: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            asker, _ = await loop.sock_accept(control)
            with asker:
                asker.settimeout(5)
                try:
                    text, handed, _, _ = socket.recv_fds(asker, 65536, 1)
                    if text:
                        asker.sendall(json.dumps(await self.answer(json.loads(text), handed)).encode())
                except OSError as problem:
                    print(f"an asker went away: {problem}", flush=True)


def main() -> None:
    place = Path(sys.argv[1] if len(sys.argv) > 1 else FORWARD_SOCKET)
    control = socket.socket(socket.AF_UNIX)
    control.bind(str(place))
    control.listen(64)
    control.setblocking(False)
    asyncio.run(Forwards().serve(control))


if __name__ == "__main__":
    main()
