"""Engines from the store: what a server may do in the middle, and that nothing is fetched twice or believed unseen."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web
from hotstart.engines.errors import EngineError, Reason
from hotstart.engines.transfers.download import PIECES_FILE, Download, UrlBook
from hotstart.engines.transfers.line import Line, Patience
from hotstart.engines.transfers.ranges import PIECE_BYTES, Piece
from hotstart.exchange.messages import EngineFile

SIZE = 3 * PIECE_BYTES + 12_345
BODY = random.Random(7).randbytes(SIZE)


@dataclass
class Server:
    """Serves one object in ranges. ``trick`` may answer a request in its own way, or return None."""

    body: bytes = BODY
    etag: str = '"one"'
    trick: object = None
    asked: list[int] = field(default_factory=list)
    base: str = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        start, _, last = request.headers["Range"].removeprefix("bytes=").partition("-")
        begin, end = int(start), int(last) + 1
        self.asked.append(begin)
        if self.trick is not None:
            answer = await self.trick(request, begin, end)  # type: ignore[operator]
            if answer is not None:
                return answer  # type: ignore[no-any-return]
        if request.headers.get("If-Match", self.etag) != self.etag:
            return web.Response(status=412)
        headers = {"ETag": self.etag, "Content-Range": f"bytes {begin}-{end - 1}/{len(self.body)}"}
        return web.Response(status=206, body=self.body[begin:end], headers=headers)


@asynccontextmanager
async def running(server: Server) -> AsyncIterator[Server]:
    app = web.Application()
    app.router.add_get("/engine", server.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.base = f"http://127.0.0.1:{runner.addresses[0][1]}/engine"
    try:
        yield server
    finally:
        await runner.cleanup()


async def download(
    server: Server, folder: Path, *, read_seconds: float = 20.0, remember_seconds: float = 0.0
) -> dict[str, str]:
    file = EngineFile(path="rank0.engine", size=SIZE, sha256="", url=server.base)
    urls = UrlBook()
    await urls.update((file,))
    patience = Patience(silence=read_seconds)
    fetch = Download(urls, (file,), folder, patience=patience, first_pause=0.01, remember_seconds=remember_seconds)
    return await fetch.run()


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not reached():  # noqa: ASYNC110  # a file and a foreign transport have no event
            await asyncio.sleep(0.01)


def gone_after_two(folder: Path, missing: int) -> object:
    """A trick: the piece at ``missing`` is not there, said only once two other pieces are on the disk."""

    def two_are_there() -> bool:
        path = folder / PIECES_FILE
        return path.exists() and len(json.loads(path.read_text())["pieces"]) >= 2

    async def trick(request: web.Request, begin: int, end: int) -> web.StreamResponse | None:
        if begin != missing:
            return None
        await until(two_are_there)
        return web.Response(status=404)

    return trick


def once(action: Callable[[web.Request, int, int], object]) -> object:
    """A trick that is played on the first request for the second piece only."""
    played = False

    async def trick(request: web.Request, begin: int, end: int) -> object:
        nonlocal played
        if played or begin != PIECE_BYTES:
            return None
        played = True
        return await action(request, begin, end)  # type: ignore[misc]

    return trick


async def fail(request: web.Request, begin: int, end: int) -> web.StreamResponse:
    return web.Response(status=503)


async def close(request: web.Request, begin: int, end: int) -> web.StreamResponse:
    response = web.StreamResponse(status=206, headers={"Content-Length": str(end - begin)})
    await response.prepare(request)
    await response.write(BODY[begin : begin + 1000])
    assert request.transport is not None
    request.transport.close()
    return response


async def stall(request: web.Request, begin: int, end: int) -> web.StreamResponse:
    response = web.StreamResponse(status=206, headers={"Content-Length": str(end - begin)})
    await response.prepare(request)
    await response.write(BODY[begin : begin + 1000])
    await until(lambda: request.transport is None or request.transport.is_closing())  # the client gives up
    return response


@pytest.mark.parametrize("action", [fail, close, stall])
async def test_a_server_that_errs_closes_or_stalls_in_the_middle_is_survived(
    tmp_path: Path, action: Callable[[web.Request, int, int], object]
) -> None:
    async with running(Server(trick=once(action))) as server:
        digests = await download(server, tmp_path, read_seconds=0.5)

    assert digests == {"rank0.engine": hashlib.sha256(BODY).hexdigest()}
    assert (tmp_path / "rank0.engine").read_bytes() == BODY
    assert server.asked.count(PIECE_BYTES) == 2


async def test_a_second_run_fetches_only_what_is_missing(tmp_path: Path) -> None:
    async with running(Server(trick=gone_after_two(tmp_path, 2 * PIECE_BYTES))) as server:
        with pytest.raises(EngineError) as failed:
            await download(server, tmp_path)
        assert failed.value.reason is Reason.ENGINE_FETCH_FAILED
        done = {int(name.rpartition(":")[2]) for name in json.loads((tmp_path / PIECES_FILE).read_text())["pieces"]}
        assert len(done) >= 2
        server.trick, server.asked = None, []
        digests = await download(server, tmp_path)

    assert digests["rank0.engine"] == hashlib.sha256(BODY).hexdigest()
    assert set(server.asked) == {0, PIECE_BYTES, 2 * PIECE_BYTES, 3 * PIECE_BYTES} - done


async def test_an_object_that_changes_between_two_runs_is_found_and_fetched_anew(tmp_path: Path) -> None:
    other = random.Random(8).randbytes(SIZE)
    async with running(Server(trick=gone_after_two(tmp_path, 3 * PIECE_BYTES))) as server:
        with pytest.raises(EngineError):
            await download(server, tmp_path)
        server.trick, server.body, server.etag = None, other, '"two"'
        with pytest.raises(EngineError, match="changed in the store") as changed:
            await download(server, tmp_path)
        digests = await download(server, tmp_path)

    assert changed.value.reason is Reason.ENGINE_CORRUPT
    assert changed.value.retryable
    assert digests["rank0.engine"] == hashlib.sha256(other).hexdigest()


async def test_an_object_that_changes_in_the_middle_is_found(tmp_path: Path) -> None:
    """Also where the store does not know If-Match: the piece comes with another ETag."""

    async def other_object(request: web.Request, begin: int, end: int) -> web.StreamResponse | None:
        if begin != 3 * PIECE_BYTES:
            return None
        headers = {"ETag": '"two"', "Content-Range": f"bytes {begin}-{end - 1}/{SIZE}"}
        return web.Response(status=206, body=bytes(end - begin), headers=headers)

    async with running(Server(trick=other_object)) as server:
        with pytest.raises(EngineError, match="changed in the store"):
            await download(server, tmp_path)


async def test_a_piece_that_ends_after_the_change_was_seen_does_not_count(tmp_path: Path) -> None:
    """Its bytes are of the older object, and nothing says so any longer: the next run must fetch it again."""
    changed = asyncio.Event()
    other = random.Random(8).randbytes(SIZE)

    async def trick(request: web.Request, begin: int, end: int) -> web.StreamResponse | None:
        if begin == 3 * PIECE_BYTES:
            changed.set()
            return web.Response(status=412)
        if begin == 2 * PIECE_BYTES:
            await changed.wait()
        return None

    async with running(Server(trick=trick)) as server:
        with pytest.raises(EngineError, match="changed in the store"):
            await download(server, tmp_path)
        assert json.loads((tmp_path / PIECES_FILE).read_text())["pieces"] == []
        server.trick, server.body, server.etag = None, other, '"two"'
        digests = await download(server, tmp_path)

    assert digests["rank0.engine"] == hashlib.sha256(other).hexdigest()


async def test_a_sibling_of_a_piece_that_was_refused_does_not_bring_the_old_object_back(tmp_path: Path) -> None:
    """The worker that found the change raises; another one has its last bytes at that very moment."""
    file = EngineFile(path="rank0.engine", size=SIZE, sha256="")
    fetch = Download(UrlBook(), (file,), tmp_path)
    pieces = fetch._prepare()

    async def arrive(piece: Piece, line: Line) -> None:
        fetch._check_same('"one"', piece.path)
        fetch._changed(piece.path)

    fetch._fetch = arrive  # type: ignore[method-assign]
    todo: asyncio.Queue[Piece] = asyncio.Queue()
    todo.put_nowait(pieces[0])
    await fetch._work(todo)
    assert fetch._done == set()
    with pytest.raises(EngineError, match="changed in the store"):
        fetch._check_same('"one"', "rank0.engine")


async def test_what_is_done_is_written_down_at_the_end_and_not_after_each_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []

    def write(path: Path, text: str, *, sync: bool) -> None:
        written.append(len(json.loads(text)["pieces"]))

    monkeypatch.setattr("hotstart.engines.transfers.download.write_atomically", write)
    async with running(Server()) as server:
        await download(server, tmp_path, remember_seconds=3600.0)
    assert written == [1, 4]


async def test_a_store_that_stays_away_is_named(tmp_path: Path) -> None:
    async with running(Server()) as server:
        gone = Server(base=server.base)
    with pytest.raises(EngineError) as failed:
        await download(gone, tmp_path)
    assert failed.value.reason is Reason.STORE_UNREACHABLE
    assert failed.value.retryable
