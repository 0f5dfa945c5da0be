"""The whole way but the cluster: the ``openai`` package, the router, a real Triton, the completion model, an engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest

from tests.router.bench import MODEL, Bench, until
from tests.support.pod import make_serving, write_repository
from tests.support.tiny_checkpoint import TinyShape
from tests.support.tiny_engine import write_tiny_engine
from tests.support.triton import TritonServer, start_triton

pytestmark = pytest.mark.integration


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[TritonServer]:
    engine = await asyncio.to_thread(write_tiny_engine, tmp_path / "engine", shape=TinyShape(context=2048))
    serving = make_serving(max_new_tokens=1500, max_input_tokens=96, queue_limit=14, stop="none")
    repository = write_repository(tmp_path / "repository", engine, serving)
    server = await asyncio.to_thread(start_triton, repository, load=("completion",))
    yield server
    await asyncio.to_thread(server.kill)


async def test_completions_streams_and_cancels(bench: Bench, server: TritonServer) -> None:
    await bench.serve(server.grpc, max_new_tokens=1500)
    async with openai.AsyncOpenAI(base_url=f"{bench.url}/v1", api_key="none", max_retries=0) as client:
        asked = {
            "model": MODEL,
            "prompt": "def add(a, b):\n    return",
            "max_tokens": 12,
            "temperature": 0,
            "seed": 2**40,
        }
        answer = await client.completions.create(**asked)
        assert answer.usage is not None and 1 <= answer.usage.completion_tokens <= 12
        assert answer.choices[0].finish_reason in ("stop", "length")
        stream = await client.completions.create(**asked, stream=True)
        streamed = "".join([chunk.choices[0].text async for chunk in stream])
        assert streamed == answer.choices[0].text
        long = asyncio.create_task(client.completions.create(**{**asked, "max_tokens": 1500}))
        await until(lambda: bench.lane.in_flight == 1)
        long.cancel()
        await until(lambda: bench.lane.in_flight == 0)
        again = await client.completions.create(**asked)
        assert again.choices[0].text == answer.choices[0].text
