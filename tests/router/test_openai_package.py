"""The real ``openai`` package against the router, sync and async, streaming and not."""

from __future__ import annotations

import asyncio
import re
import sys

import openai
import pytest

from tests.router.bench import MODEL, Bench, make_route
from tests.support.fake_triton import FakeTriton
from tests.support.scripts import TEXT, script
from tests.support.triton import REPOSITORY_ROOT


async def test_the_async_client_completes_and_streams(bench: Bench, triton: FakeTriton) -> None:
    await bench.serve(triton)
    async with openai.AsyncOpenAI(base_url=f"{bench.url}/v1", api_key="none") as client:
        answer = await client.completions.create(model=MODEL, prompt="def f(x):", max_tokens=16, temperature=0)
        assert answer.choices[0].text == TEXT and answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None and answer.usage.total_tokens == 2
        stream = await client.completions.create(
            model=MODEL, prompt=script(steps=3), stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == "xxx"
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 3


async def test_the_sync_client_completes_and_streams(bench: Bench, triton: FakeTriton) -> None:
    await bench.serve(triton)

    def talk() -> tuple[str, str]:
        with openai.OpenAI(base_url=f"{bench.url}/v1", api_key="none") as client:
            answer = client.completions.create(model=MODEL, prompt="def f(x):", suffix="\n", stop=["\n\n"], seed=1)
            stream = client.completions.create(model=MODEL, prompt=script(steps=3), stream=True)
            return answer.choices[0].text, "".join(chunk.choices[0].text for chunk in stream)

    assert await asyncio.to_thread(talk) == (TEXT, "xxx")


async def test_the_lines_of_the_readme_print_a_completion(bench: Bench, triton: FakeTriton) -> None:
    [code] = re.findall(r"```python\n(.*?)```", (REPOSITORY_ROOT / "README.md").read_text(), re.DOTALL)
    assert len(code.strip().splitlines()) == 3
    await bench.operator.send(make_route(triton, model="demo/smollm2"))
    code = code.replace("http://127.0.0.1:8080", bench.url)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    printed, _ = await process.communicate()
    assert process.returncode == 0 and printed.decode() == TEXT + "\n"
    [seen] = triton.seen
    assert (seen.prompt, seen.options["max_tokens"]) == ("def add(a, b):\n    return", 8)


async def test_models_are_listed_and_found_by_name(bench: Bench, triton: FakeTriton) -> None:
    await bench.operator.send(make_route(triton, created=1234), make_route(model="shop/other"))
    async with openai.AsyncOpenAI(base_url=f"{bench.url}/v1", api_key="none") as client:
        listed = [model async for model in client.models.list()]
        assert [(model.id, model.created, model.owned_by) for model in listed] == [
            (MODEL, 1234, "shop"),
            ("shop/other", 0, "shop"),
        ]
        assert (await client.models.retrieve(MODEL)).id == MODEL
        with pytest.raises(openai.NotFoundError) as missing:
            await client.models.retrieve("shop/none")
    assert missing.value.code == "model_not_found"


async def test_errors_are_the_packages_own_classes(bench: Bench, triton: FakeTriton) -> None:
    route = make_route(triton, cap=1, queue_limit=0)
    empty = make_route(model="shop/empty", unavailable_reason="the checkpoint is missing")
    await bench.operator.send(route, empty)
    await bench.answering(1)
    async with openai.AsyncOpenAI(base_url=f"{bench.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError) as bad:
            await client.completions.create(model=MODEL, prompt="x", n=2)
        assert bad.value.param == "n"
        with pytest.raises(openai.NotFoundError):
            await client.completions.create(model="shop/none", prompt="x")
        with pytest.raises(openai.InternalServerError, match="checkpoint is missing"):
            await client.completions.create(model="shop/empty", prompt="x")
        stream = await client.completions.create(model=MODEL, prompt=script(steps=1000, step_ms=5), stream=True)
        async for _ in stream:
            break
        with pytest.raises(openai.RateLimitError) as full:
            await client.completions.create(model=MODEL, prompt="x")
        assert int(full.value.response.headers["retry-after"]) >= 1
        await stream.close()
        with pytest.raises(openai.APIError, match="failed on this request"):
            async for _ in await _stream_when_free(client):
                pass


async def _stream_when_free(client: openai.AsyncOpenAI) -> openai.AsyncStream[openai.types.Completion]:
    """The slot of the closed stream is free a moment later."""
    patient = client.with_options(max_retries=5)
    return await patient.completions.create(model=MODEL, prompt=script(steps=3, error="internal: no"), stream=True)
