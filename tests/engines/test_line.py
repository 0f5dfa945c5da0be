"""A connection to the store: kept, made anew where it was closed, over TLS, and gone at once where its caller is."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
from contextlib import closing
from pathlib import Path

import pytest
from aiohttp import web
from hotstart.engines.transfers import line as lines
from hotstart.engines.transfers.line import Line, Patience, Transient

from tests.support.certificates import make_tls
from tests.support.pod import until
from tests.support.ports import free_port

BODY = os.urandom(3 * 1024 * 1024 + 17)


class Store:
    """GET answers with BODY and notes the connections that it came by; PUT keeps what it gets."""

    def __init__(self) -> None:
        self.connections: list[object] = []
        self.kept = b""
        self.stalled = asyncio.Event()
        self.going_on = asyncio.Event()

    async def get(self, request: web.Request) -> web.StreamResponse:
        self.connections.append(request.transport)
        return web.Response(body=BODY)

    async def get_and_close(self, request: web.Request) -> web.StreamResponse:
        """Says that the connection is kept, and then closes it."""
        response = web.Response(body=BODY)
        await response.prepare(request)
        await response.write_eof()
        assert request.transport is not None
        request.transport.close()
        return response

    async def get_last(self, request: web.Request) -> web.StreamResponse:
        """Says that the connection ends with this answer."""
        response = web.Response(body=BODY)
        response.force_close()
        return response

    async def stall(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(BODY))})
        await response.prepare(request)
        await response.write(BODY[:1000])
        self.stalled.set()
        await self.going_on.wait()
        return response

    async def put(self, request: web.Request) -> web.Response:
        self.kept = await request.read()
        return web.Response(headers={"ETag": '"x"'}, text="as you wish")


@pytest.fixture
async def store():
    yield Store()


async def start(store: Store, tls: ssl.SSLContext | None = None) -> tuple[web.AppRunner, str]:
    app = web.Application(client_max_size=2 * len(BODY))
    app.router.add_get("/", store.get)
    app.router.add_get("/close", store.get_and_close)
    app.router.add_get("/last", store.get_last)
    app.router.add_get("/stall", store.stall)
    app.router.add_put("/", store.put)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls).start()
    return runner, f"https://localhost:{port}" if tls else f"http://127.0.0.1:{port}"


async def fetch(line: Line, url: str, path: Path) -> list[int]:
    """Writes the body to the file; what was heard of its bytes."""
    heard: list[int] = []
    answer = await line.ask("GET", url, {})
    assert answer.status == 200
    with path.open("wb") as file:
        await line.receive(answer, file.fileno(), 0, len(BODY), heard.append)
    return heard


async def test_requests_follow_one_another_on_one_connection(store: Store, tmp_path: Path) -> None:
    runner, url = await start(store)
    with closing(Line(Patience())) as line:
        for name in ("one", "two"):
            heard = await fetch(line, url, tmp_path / name)
            assert (tmp_path / name).read_bytes() == BODY
            assert sum(heard) == len(BODY) and len(heard) > 1
    assert len(store.connections) == 2 and len(set(store.connections)) == 1
    await runner.cleanup()


async def test_a_kept_connection_that_the_store_has_closed_is_made_anew(store: Store, tmp_path: Path) -> None:
    runner, url = await start(store)
    with closing(Line(Patience())) as line:
        for _ in range(3):
            await fetch(line, f"{url}/close", tmp_path / "x")
            assert (tmp_path / "x").read_bytes() == BODY
        answer = await line.ask("PUT", url, {}, memoryview(BODY))
        assert (answer.status, answer.headers["ETag"]) == (200, '"x"')
        assert await line.run(answer.said) == "200 as you wish"
    assert store.kept == BODY
    await runner.cleanup()


async def test_where_the_store_says_that_it_closes_the_next_request_makes_a_new_connection(
    store: Store, tmp_path: Path
) -> None:
    runner, url = await start(store)
    with closing(Line(Patience())) as line:
        for _ in range(3):
            await fetch(line, f"{url}/last", tmp_path / "x")
            assert (tmp_path / "x").read_bytes() == BODY
    await runner.cleanup()


async def test_it_speaks_tls_and_believes_only_whom_it_knows(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, url = await start(store, make_tls(tmp_path))
    with closing(Line(Patience())) as line:
        with pytest.raises(Transient, match="certificate verify failed"):
            await line.ask("GET", url, {})
        monkeypatch.setattr(lines, "_tls", lambda: ssl.create_default_context(cafile=str(tmp_path / "cert.pem")))
        await fetch(line, url, tmp_path / "x")
        assert (tmp_path / "x").read_bytes() == BODY
        assert (await line.ask("PUT", url, {}, memoryview(BODY))).status == 200
    assert store.kept == BODY
    await runner.cleanup()


async def test_one_that_is_cancelled_ends_its_thread_at_once(store: Store, tmp_path: Path) -> None:
    """Nothing writes to the file any longer once the caller has gone."""
    runner, url = await start(store)
    with closing(Line(Patience(silence=3600))) as line:
        fetching = asyncio.create_task(fetch(line, f"{url}/stall", tmp_path / "x"))
        await store.stalled.wait()
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching

    async def gone() -> bool:
        return not any(thread.name.startswith("transfer") for thread in threading.enumerate())

    await until(gone, "the end of the line's thread")
    store.going_on.set()
    await runner.cleanup()


@pytest.mark.parametrize("secure", [False, True])
async def test_a_store_that_refuses_and_closes_before_it_has_read_the_body_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secure: bool
) -> None:
    tls = make_tls(tmp_path)
    trusting = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    monkeypatch.setattr(lines, "_tls", lambda: trusting)

    def refuse(listener: socket.socket) -> None:
        accepted, _ = listener.accept()
        with tls.wrap_socket(accepted, server_side=True) if secure else accepted as connection:
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 7\r\nConnection: close\r\n\r\nexpired")

    with socket.create_server(("127.0.0.1", 0)) as listener, closing(Line(Patience())) as line:
        refusing = asyncio.create_task(asyncio.to_thread(refuse, listener))
        url = f"{'https' if secure else 'http'}://localhost:{listener.getsockname()[1]}"
        answer = await line.ask("PUT", url, {}, memoryview(bytes(64 * 1024 * 1024)))
        assert await line.run(answer.said) == "403 expired"
        await refusing


@pytest.mark.parametrize(("patience", "words"), [(Patience(silence=0.2), "TimeoutError"), (Patience(total=0), "over")])
async def test_a_store_that_takes_too_long_is_left(
    store: Store, tmp_path: Path, patience: Patience, words: str
) -> None:
    runner, url = await start(store)
    with closing(Line(patience)) as line, pytest.raises(Transient, match=words):
        await fetch(line, f"{url}/stall", tmp_path / "x")
    store.going_on.set()
    await runner.cleanup()


async def test_a_store_that_is_not_there_is_named() -> None:
    port = free_port()
    with closing(Line(Patience())) as line, pytest.raises(Transient, match=f"127.0.0.1:{port} is not reached"):
        await line.ask("GET", f"http://127.0.0.1:{port}/x", {})


async def test_a_silent_address_does_not_take_the_time_of_the_next_one(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, url = await start(store)
    port = int(url.rpartition(":")[2])
    loop = asyncio.get_running_loop()
    connect = loop.sock_connect

    async def addresses(*_: object, **__: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        tcp = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [(*tcp, ("127.0.0.2", port)), (*tcp, ("127.0.0.1", port))]

    async def connect_or_wait(made: socket.socket, address: tuple[str, int]) -> None:
        if address[0] == "127.0.0.2":
            await loop.create_future()
        await connect(made, address)

    monkeypatch.setattr(loop, "getaddrinfo", addresses)
    monkeypatch.setattr(loop, "sock_connect", connect_or_wait)
    with closing(Line(Patience(connect=2.0))) as line:
        await fetch(line, url, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == BODY
    await runner.cleanup()
