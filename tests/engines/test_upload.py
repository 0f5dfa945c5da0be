"""The upload of an engine against a store that fails, refuses and loses answers: every byte arrives, hashed once."""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hotstart.engines.builder.log_tail import LogTail
from hotstart.engines.builder.state import BuildState
from hotstart.engines.errors import Reason, Retryable
from hotstart.engines.transfers.parts import MAX_REFUSALS, MAX_TRIES
from hotstart.engines.transfers.upload import upload_engine
from hotstart.exchange.messages import BuildPhase, BuildRequest, UploadPart

PART_SIZE = 64 * 1024
#: (path, number, how often that part was PUT) -> HTTP status, or 0 to break the connection
Behaviour = Callable[[str, int, int], int]


class FakeStore:
    """Takes PUTs of parts at /{path}/{number}?url={generation of the URL}."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.bodies: dict[tuple[str, int], bytes] = {}
        self.puts: defaultdict[tuple[str, int], int] = defaultdict(int)
        self.generations: list[int] = []
        self.most_at_once = self.at_once = 0

    def make_app(self) -> web.Application:
        app = web.Application(client_max_size=2 * PART_SIZE)
        app.router.add_put("/{path}/{number}", self.put)
        return app

    async def put(self, request: web.Request) -> web.Response:
        path, number = request.match_info["path"], int(request.match_info["number"])
        self.generations.append(int(request.query["url"]))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            body = await request.read()
            self.puts[path, number] += 1
            status = self.behaviour(path, number, self.puts[path, number])
            if status == 0:
                assert request.transport is not None
                request.transport.abort()
            if status == 200:
                self.bodies[path, number] = body
                return web.Response(headers={"ETag": f'"{hashlib.md5(body).hexdigest()}"'})
            return web.Response(status=status or 500, text="<Error>no</Error>")
        finally:
            self.at_once -= 1


class Harness:
    """A builder's state, an operator that answers what it asks for, and waits that take no time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = BuildState("uid", "key", LogTail())
        self.waited: list[float] = []
        self.signed = 0
        self.asked: list[tuple[str, int]] = []

    async def run(self, server: TestServer) -> tuple:
        upload = asyncio.create_task(upload_engine(self.state, self.folder, part_size=PART_SIZE, sleep=self._sleep))
        while not upload.done():
            await self._exchange(server)
            await asyncio.sleep(0)
        return upload.result()

    async def _exchange(self, server: TestServer) -> None:
        report = self.state.report()
        ids = {file.path: f"id-{file.path}" for file in report.files if not file.upload_id}
        parts = []
        for want in report.wants_parts:
            self.signed += 1
            self.asked.append((want.path, want.number))
            url = str(server.make_url(f"/{want.path}/{want.number}").with_query(url=str(self.signed)))
            parts.append(UploadPart(path=want.path, number=want.number, url=url))
        await self.state.answer(BuildRequest(upload_ids=ids, parts=tuple(parts)))

    async def _sleep(self, seconds: float) -> None:
        self.waited.append(seconds)
        await asyncio.sleep(0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An engine of three files: two parts and a bit, a few bytes, nothing."""
    (tmp_path / "model.bin").write_bytes(bytes(range(256)) * (PART_SIZE // 128) + b"end")
    (tmp_path / "config.json").write_bytes(b"{}")
    (tmp_path / "empty").write_bytes(b"")
    return tmp_path


async def upload(folder: Path, behaviour: Behaviour) -> tuple[FakeStore, Harness, tuple]:
    store, harness = FakeStore(behaviour), Harness(folder)
    async with TestServer(store.make_app()) as server:
        files = await harness.run(server)
    return store, harness, files


async def test_every_byte_arrives_and_is_hashed(folder: Path) -> None:
    store, harness, files = await upload(folder, lambda path, number, puts: 200)
    by_path = {file.path: file for file in files}
    assert by_path.keys() == {"model.bin", "config.json", "empty"}
    for path, file in by_path.items():
        content = (folder / path).read_bytes()
        parts = [body for (name, _), body in sorted(store.bodies.items()) if name == path]
        assert b"".join(parts) == content
        assert file.sha256 == hashlib.sha256(content).hexdigest()
        assert file.size == len(content)
        assert file.upload_id == f"id-{path}"
        assert file.etags == tuple(f'"{hashlib.md5(body).hexdigest()}"' for body in parts)
    assert len(by_path["model.bin"].etags) == 3
    assert harness.state.phase is BuildPhase.UPLOADING
    assert harness.state.share == 1.0
    assert harness.waited == []


async def test_a_store_that_fails_or_hangs_up_is_tried_again_with_longer_waits(folder: Path) -> None:
    answers = {1: 503, 2: 500, 3: 0}  # a PUT whose kept connection was closed is repeated at once
    _, harness, files = await upload(folder, lambda path, number, puts: answers.get(puts, 200))
    assert all(file.sha256 for file in files)
    assert set(harness.waited) >= {0.5, 1}


async def test_a_refused_url_is_asked_for_again(folder: Path) -> None:
    store, harness, files = await upload(
        folder, lambda path, number, puts: 403 if path == "model.bin" and puts == 1 else 200
    )
    assert all(file.sha256 for file in files)
    assert sorted(set(harness.asked)) != sorted(harness.asked)
    assert len(harness.asked) == 3 + 3 + 2
    assert len(set(store.generations)) == len(store.generations)
    assert harness.waited == []


async def test_a_store_that_always_fails_ends_the_upload(folder: Path) -> None:
    with pytest.raises(Retryable, match=f"after {MAX_TRIES} tries") as failure:
        await upload(folder, lambda path, number, puts: 503)
    assert failure.value.reason is Reason.STORE_UNREACHABLE


async def test_a_store_that_always_refuses_ends_the_upload(folder: Path) -> None:
    with pytest.raises(Retryable, match=f"after {MAX_REFUSALS} tries .403"):
        await upload(folder, lambda path, number, puts: 403)


async def test_no_more_than_a_few_parts_are_in_memory(folder: Path) -> None:
    (folder / "model.bin").write_bytes(b"")
    with (folder / "model.bin").open("r+b") as file:
        file.truncate(12 * PART_SIZE)
    store, _, _ = await upload(folder, lambda path, number, puts: 200)
    assert store.most_at_once <= 4


async def test_a_url_that_nobody_asked_for_changes_nothing(folder: Path) -> None:
    state = BuildState("uid", "key", LogTail())
    report = await state.answer(
        BuildRequest(upload_ids={"x": "id"}, parts=(UploadPart(path="x", number=1, url="http://x"),), published=True)
    )
    assert report.files == ()
    assert not state.published.is_set()
