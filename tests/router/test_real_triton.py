"""The whole router against a real Triton with a scripted model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.router.bench import Bench, until
from tests.support.scripts import TEXT, script
from tests.support.triton import REPOSITORY_ROOT, TritonServer, start_triton

pytestmark = pytest.mark.integration
SCRIPTED_MODEL = REPOSITORY_ROOT / "tests/support/scripted_model"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[TritonServer]:
    log = tmp_path / "triton.log"
    server = await asyncio.to_thread(
        start_triton, SCRIPTED_MODEL, load=("completion",), log=log, exit_timeout_seconds=30
    )
    yield server
    await asyncio.to_thread(server.kill)


async def read(bench: Bench, **body: object) -> int:
    async with bench.post(**body) as response:
        await response.read()
        return int(response.status)


async def test_completions_streams_errors_and_disconnects(bench: Bench, server: TritonServer) -> None:
    await bench.serve(server.grpc, cap=2)
    async with bench.post() as response:
        assert (await response.json())["choices"][0]["text"] == TEXT
    async with bench.post(prompt=script(steps=5, text="é"), stream=True) as response:
        body = await response.text()
    assert body.count('"text":"é"') == 5 and body.endswith("data: [DONE]\n\n")
    async with bench.post(prompt=script(error="invalid: no such thing")) as response:
        assert response.status == 400
    for stream in (False, True):
        posts = [
            asyncio.create_task(read(bench, prompt=script(steps=100_000, step_ms=5), stream=stream)) for _ in range(2)
        ]
        await until(lambda: bench.lane.in_flight == 2)
        for post in posts:
            post.cancel()
        await until(lambda: bench.lane.in_flight == 0)
    assert await read(bench) == 200


async def test_a_triton_that_is_told_to_end_finishes_what_runs_and_ends(bench: Bench, server: TritonServer) -> None:
    await bench.serve(server.grpc)
    assert await read(bench) == 200
    longer_than_a_lost_pod_has = script(steps=300, step_ms=10)  # 3 s
    async with bench.post(prompt=longer_than_a_lost_pod_has, stream=True) as response:
        await response.content.readuntil(b"\n\n")  # it runs
        server.process.terminate()
        rest = await response.text()
    assert rest.endswith("data: [DONE]\n\n")
    await until(lambda: server.process.poll() is not None)
    assert server.process.returncode == 0


async def test_a_killed_triton_is_left_out_and_taken_in_again(
    bench: Bench, server: TritonServer, tmp_path: Path
) -> None:
    await bench.serve(server.grpc)
    assert await read(bench) == 200
    await asyncio.to_thread(server.kill)
    await bench.answering(0)
    again = await asyncio.to_thread(start_triton, SCRIPTED_MODEL, like=server.plan, log=tmp_path / "again.log")
    try:
        assert await read(bench) == 200
    finally:
        await asyncio.to_thread(again.kill)
