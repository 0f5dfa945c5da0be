"""The completion model over the model ``tensorrt_llm`` in a real Triton, which the stand-in serves.

The stand-in is loaded with the configuration generated for TensorRT-LLM's own backend, which has not run anywhere yet.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import tritonclient.grpc.aio as grpc
from hotstart.engines.triton.server import ServerPlan
from hotstart.router.wire import Fault, read_refusal
from tritonclient.utils import InferenceServerException

from tests.support.completion_stream import Stream, cancel_message, message
from tests.support.pod import make_serving, until, write_repository
from tests.support.standin_engine import make_backends, write_standin_engine
from tests.support.triton import TritonServer, free_port, start_triton

pytestmark = pytest.mark.integration
BATCH = 4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, slow_engine_folder: Path) -> Iterator[TritonServer]:
    """Triton with both models on the slow engine."""
    root = tmp_path_factory.mktemp("trtllm")
    engine = write_standin_engine(root / "engine", slow_engine_folder, batch_size=BATCH)
    serving = make_serving(max_new_tokens=400, max_input_tokens=96, queue_limit=28)
    repository = write_repository(root / "repository", engine, serving)
    made = start_triton(repository, load=("tensorrt_llm", "completion"), backends=make_backends(root / "backends"))
    yield made
    made.stop()


@pytest.fixture
async def stream(server: TritonServer) -> AsyncIterator[Stream]:
    async with grpc.InferenceServerClient(server.grpc) as client:
        made = Stream(client)
        yield made
        await made.close()


@pytest.fixture
async def direct(completion_server: TritonServer) -> AsyncIterator[Stream]:
    """The completion model that runs the same engine itself."""
    async with grpc.InferenceServerClient(completion_server.grpc) as client:
        made = Stream(client)
        yield made
        await made.close()


@pytest.fixture
def running(server: TritonServer) -> Callable[[], Any]:
    return lambda: read_metric(server, "running")


async def read_metric(server: TritonServer, name: str) -> float:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{server.metrics}/metrics") as response,
    ):
        lines = (await response.text()).splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"hotstart_completion_{name}{{"))


async def _is(server: TritonServer, name: str, value: int) -> bool:
    return await read_metric(server, name) == value


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 24},
        {"max_tokens": 24, "stream": True},
        {"max_tokens": 60, "stop_mode": "line"},
    ],
    ids=lambda options: "-".join(options),
)
async def test_the_text_is_that_of_the_engine_run_directly(
    stream: Stream, direct: Stream, options: dict[str, Any]
) -> None:
    [through] = await stream.end(stream.send(message("t", **options)))
    [own] = await direct.end(direct.send(message("d", **options)))
    assert "".join(stream.texts["t"]) == "".join(direct.texts["d"]) != ""
    for name in ("finish_reason", "completion_tokens", "prompt_tokens"):
        assert through[name] == own[name]
    assert "engine_queue_ms" in through
    assert "engine_queue_ms" not in own


async def test_a_seed_gives_its_text_again(stream: Stream) -> None:
    """Each runtime draws in its own way, so it is not the text that the engine gives when run directly."""
    for name, seed in (("s1", 11), ("s2", 11), ("s3", 12)):
        await stream.end(stream.send(message(name, max_tokens=12, temperature=0.9, seed=seed, top_k=20)))
    first, again, other = ("".join(stream.texts[name]) for name in ("s1", "s2", "s3"))
    assert first == again != ""
    assert other != first


async def test_a_stop_string_ends_the_generation_in_the_engine(stream: Stream, running: Callable[[], Any]) -> None:
    await stream.end(stream.send(message("free", max_tokens=24)))
    text = stream.texts["free"][0]
    stop = text[len(text) // 2 :][:3]
    for request_id, streaming in (("stop-whole", False), ("stop-parts", True)):
        [details] = await stream.end(stream.send(message(request_id, max_tokens=400, stop=[stop], stream=streaming)))
        assert "".join(stream.texts[request_id]) == text[: text.find(stop)]
        assert details["finish_reason"] == "stop"
        assert details["completion_tokens"] <= 24
    await until(lambda: _idle(running), "an idle engine")


async def test_what_the_engine_measured_stands_in_the_details_and_in_metrics(
    server: TritonServer, stream: Stream
) -> None:
    prompt = "total = total + values[index] * weights[index]\n" * 6
    queued = await read_metric(server, "engine_queue_seconds_count")
    reused = await read_metric(server, "reused_blocks_total")
    [first] = await stream.end(stream.send(message("first", prompt=prompt, max_tokens=2)))
    [second] = await stream.end(stream.send(message("second", prompt=prompt, max_tokens=2)))
    assert first["reused_blocks"] == 0
    assert second["reused_blocks"] > 0
    assert 0 <= second["engine_queue_ms"] < 60_000

    async def counted() -> bool:
        return (
            await read_metric(server, "engine_queue_seconds_count") >= queued + 2
            and await read_metric(server, "reused_blocks_total") >= reused + second["reused_blocks"]
        )

    await until(counted, "both requests in the metrics")


async def test_a_seed_repeats_and_no_seed_varies(stream: Stream) -> None:
    def sampled(name: str, **options: Any) -> str:
        return stream.send(message(name, max_tokens=12, temperature=1.0, **options))

    await stream.end(sampled("s1", seed=7), sampled("s2", seed=7), sampled("s3", seed=8))
    assert stream.texts["s1"] == stream.texts["s2"] != stream.texts["s3"]
    names = [sampled(f"free{number}") for number in range(6)]
    await stream.end(*names)
    assert len({tuple(stream.texts[name]) for name in names}) > 1


async def test_many_at_once_all_end(stream: Stream) -> None:
    names = [stream.send(message(f"p{number}", max_tokens=4, stream=number % 2 == 0)) for number in range(24)]
    for details in await stream.end(*names):
        assert details["completion_tokens"] == 4
    assert len({"".join(stream.texts[name]) for name in names}) == 1


async def test_hundreds_with_sixteen_at_once_all_end(tmp_path: Path, engine_folder: Path) -> None:
    """By way of Triton's business logic scripting this hung within the first hundred or two."""
    engine = write_standin_engine(tmp_path / "engine", engine_folder, batch_size=16)
    repository = write_repository(tmp_path / "repository", engine, make_serving(max_new_tokens=8))
    made = start_triton(repository, load=("tensorrt_llm", "completion"), backends=make_backends(tmp_path / "backends"))
    try:
        async with grpc.InferenceServerClient(made.grpc) as client:
            stream = Stream(client)

            async def ask(place: int) -> None:
                for number in range(40):
                    name = f"{place}-{number}"
                    [details] = await stream.end(stream.send(message(name, max_tokens=8, stream=number % 2 == 0)))
                    assert details["completion_tokens"] == 8

            await asyncio.gather(*(ask(place) for place in range(16)))
            assert len({"".join(texts) for texts in stream.texts.values()}) == 1
            await stream.close()
    finally:
        made.stop()


async def test_a_cancelled_request_frees_its_place_in_the_engine(stream: Stream, running: Callable[[], Any]) -> None:
    names = [stream.send(message(f"c{number}", max_tokens=400, stream=True)) for number in range(BATCH)]
    async with asyncio.timeout(60):
        await asyncio.gather(*(stream.first[name].wait() for name in names))
    waiting = stream.send(message("next", max_tokens=1))
    await stream.end(stream.send(cancel_message("k", names[0])))
    [details, after] = await stream.end(names[0], waiting)
    assert details["finish_reason"] == "cancelled"
    assert details["completion_tokens"] < 400
    assert after["completion_tokens"] == 1
    for name in names[1:]:
        stream.send(cancel_message(f"k-{name}", name))
    await stream.end(*names)
    await until(lambda: _idle(running), "an idle engine")


async def test_a_client_that_leaves_ends_its_generations(server: TritonServer, running: Callable[[], Any]) -> None:
    async with grpc.InferenceServerClient(server.grpc) as client:
        stream = Stream(client)
        names = [stream.send(message(f"b{number}", max_tokens=400, stream=True)) for number in range(BATCH)]
        async with asyncio.timeout(60):
            await asyncio.gather(*(stream.first[name].wait() for name in names))
        await stream.close()
    await until(lambda: _idle(running), "an idle engine")


async def test_a_triton_that_is_ended_completes_what_runs_and_gives_the_rest_away(
    tmp_path: Path, slow_engine_folder: Path
) -> None:
    """Its HTTP port goes first: what waited for a place in the engine is for another replica, says the router."""
    engine = write_standin_engine(tmp_path / "engine", slow_engine_folder, batch_size=2)
    serving = make_serving(max_new_tokens=400, max_input_tokens=96, queue_limit=28)
    repository = write_repository(tmp_path / "repository", engine, serving)
    backends = make_backends(tmp_path / "backends")
    like = ServerPlan(
        repository,
        address="127.0.0.1",
        http_port=free_port(),
        grpc_port=free_port(),
        metrics_port=free_port(),
        exit_timeout_seconds=60,
        load=("tensorrt_llm", "completion"),
    )
    made = start_triton(repository, like=like, backends=backends)
    try:
        async with grpc.InferenceServerClient(made.grpc) as client:
            running = [Lone(client, f"runs{number}", max_tokens=120, stream=True) for number in range(2)]
            async with asyncio.timeout(60):
                await asyncio.gather(*(each.first.wait() for each in running))
            waiting = [Lone(client, f"waits{number}", max_tokens=4) for number in range(4)]
            await until(lambda: _is(made, "waiting", 4), "four requests that wait")
            made.process.terminate()
            for details in await asyncio.gather(*(each.end() for each in running)):
                assert details["completion_tokens"] == 120
            for each in waiting:
                with pytest.raises(InferenceServerException) as refusal:
                    await each.end()
                assert read_refusal(str(refusal.value)).fault is Fault.OVERLOADED, refusal.value
    finally:
        made.stop()


class Lone:
    """One request on a stream of its own, so that a refusal is told apart."""

    def __init__(self, client: grpc.InferenceServerClient, name: str, **options: Any) -> None:
        self.first = asyncio.Event()
        self._over = asyncio.Event()
        self._asked = message(name, **options)
        self._task = asyncio.create_task(self._read(client.stream_infer(self._requests(), stream_timeout=120)))

    async def _requests(self) -> AsyncIterator[dict[str, Any]]:
        yield self._asked
        await self._over.wait()

    async def _read(self, call: Any) -> dict[str, Any]:
        try:
            async for result, error in call:
                if error is not None:
                    raise error
                self.first.set()
                if result.get_response().parameters["triton_final_response"].bool_param:
                    return dict(json.loads(result.as_numpy("details")[0]))
        finally:
            self._over.set()
        raise AssertionError("the stream ended")

    async def end(self) -> dict[str, Any]:
        async with asyncio.timeout(60):
            return await self._task


async def test_a_failure_in_the_engine_comes_in_its_own_words(server: TritonServer) -> None:
    """More tokens than the engine's sequence holds, sent past our own limits to the model itself."""
    inputs = [
        int_tensor("input_ids", [1] * 4090),
        int_tensor("input_lengths", [4090]),
        int_tensor("request_output_len", [100]),
    ]

    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": "tensorrt_llm", "request_id": "x", "inputs": inputs}

    async with grpc.InferenceServerClient(server.grpc) as client:
        async for _, error in client.stream_infer(requests(), stream_timeout=30):
            assert isinstance(error, InferenceServerException)
            assert "Executor failed process requestId" in str(error)
            return


def int_tensor(name: str, values: list[int]) -> Any:
    made = grpc.InferInput(name, [1, len(values)], "INT32")
    made.set_data_from_numpy(np.array([values], np.int32))
    return made


async def _idle(running: Callable[[], Any]) -> bool:
    return bool(await running() == 0)
