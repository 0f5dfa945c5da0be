"""Engines, a Triton with the completion model, and a pod: what the tests of this folder start."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from hotstart.engines.triton.server import ServerPlan
from hotstart.exchange.signing import make_jwks, make_signing_key

from tests.support.pod import Pod, Store, make_serving, write_repository
from tests.support.tiny_checkpoint import TinyShape
from tests.support.tiny_engine import write_tiny_engine, write_verified_engine
from tests.support.triton import TritonServer, free_port, make_shared_memory_prefix, start_triton


@pytest.fixture(scope="session")
def engine_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_engine(tmp_path_factory.mktemp("engine") / "tiny", shape=TinyShape(context=512))


@pytest.fixture(scope="session")
def verified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine with its golden questions."""
    return write_verified_engine(tmp_path_factory.mktemp("engine") / "verified", shape=TinyShape(context=512))


@pytest.fixture(scope="session")
def slow_engine_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine with some milliseconds a token, so that a request can be met while it runs."""
    shape = TinyShape(layers=6, width=768, intermediate=2048, heads=8, kv_heads=8, context=4096)
    return write_tiny_engine(tmp_path_factory.mktemp("engine") / "slow", shape=shape)


@pytest.fixture(scope="session")
def completion_server(tmp_path_factory: pytest.TempPathFactory, slow_engine_folder: Path) -> Iterator[TritonServer]:
    """Triton with the completion model on the slow engine: two workers, eight may wait."""
    serving = make_serving(max_new_tokens=400, max_input_tokens=96, queue_limit=14)
    repository = write_repository(tmp_path_factory.mktemp("pod") / "repository", slow_engine_folder, serving)
    server = start_triton(repository, load=("completion",))
    yield server
    server.stop()


@pytest.fixture
async def store(tmp_path: Path, engine_folder: Path) -> AsyncIterator[Store]:
    folder = tmp_path / "store"
    folder.mkdir()
    for path in engine_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    made = Store(folder)
    app = web.Application()
    app.router.add_get("/{name}", made.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", free_port())
    await site.start()
    made.address = site.name.removeprefix("http://")
    yield made
    await runner.cleanup()


@pytest.fixture
async def pod(tmp_path: Path) -> AsyncIterator[Pod]:
    key = make_signing_key()
    (tmp_path / "jwks.json").write_text(make_jwks((key,)))
    plan = ServerPlan(
        tmp_path / "models" / "repository",
        address="127.0.0.1",
        http_port=free_port(),
        grpc_port=free_port(),
        metrics_port=free_port(),
        exit_timeout_seconds=5,
        shared_memory=make_shared_memory_prefix(),
    )
    async with aiohttp.ClientSession() as session:
        made = Pod(tmp_path, session, key, free_port(), plan)
        yield made
        made.end_agent()
        if made.triton is not None:
            made.triton.kill()
