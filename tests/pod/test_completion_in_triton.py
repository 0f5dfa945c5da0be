"""The completion model in a real Triton with a real engine, by gRPC streams and by HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
import tritonclient.grpc.aio as grpc
from tritonclient.utils import InferenceServerException

from tests.support.completion_stream import Stream, cancel_message, message
from tests.support.pod import until
from tests.support.triton import TritonServer

pytestmark = pytest.mark.integration


@pytest.fixture
async def stream(completion_server: TritonServer) -> AsyncIterator[Stream]:
    async with grpc.InferenceServerClient(completion_server.grpc) as client:
        made = Stream(client)
        yield made
        await made.close()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
def metrics(completion_server: TritonServer, http: aiohttp.ClientSession) -> Callable[[], Any]:
    async def read() -> dict[str, float]:
        async with http.get(f"http://{completion_server.metrics}/metrics") as response:
            lines = (await response.text()).splitlines()
        pairs = (line.rpartition(" ") for line in lines if line.startswith("hotstart_completion"))
        return {
            name.replace('model="team/tiny",', "").replace('{model="team/tiny"}', ""): float(v) for name, _, v in pairs
        }

    return read


async def test_one_final_message_has_text_and_details(stream: Stream) -> None:
    [details] = await stream.end(stream.send(message("one", max_tokens=8)))
    assert stream.texts["one"] != [""]
    assert len(stream.texts["one"]) == 1
    assert details["finish_reason"] in ("stop", "length")
    assert details["completion_tokens"] <= 8
    assert details["prompt_tokens"] > 0
    assert details["trimmed_tokens"] == 0
    assert {"queue_ms", "prefill_ms", "decode_ms"} <= details.keys()


async def test_a_stream_of_deltas_makes_the_same_text(stream: Stream) -> None:
    await stream.end(stream.send(message("whole", max_tokens=24)))
    await stream.end(stream.send(message("parts", max_tokens=24, stream=True)))
    assert len(stream.texts["parts"]) > 2
    assert "".join(stream.texts["parts"]) == stream.texts["whole"][0]


async def test_a_stop_string_cuts_both_ways_of_answering(stream: Stream) -> None:
    await stream.end(stream.send(message("free", max_tokens=24)))
    text = stream.texts["free"][0]
    stop = text[len(text) // 2 :][:3]
    expected = text[: text.find(stop)]
    for request_id, streaming in (("stop-whole", False), ("stop-parts", True)):
        [details] = await stream.end(stream.send(message(request_id, max_tokens=24, stop=[stop], stream=streaming)))
        assert "".join(stream.texts[request_id]) == expected
        assert details["finish_reason"] == "stop"


async def test_a_seed_repeats_a_sampled_completion(stream: Stream) -> None:
    def sampled(name: str, **options: Any) -> str:
        return stream.send(message(name, max_tokens=12, temperature=1.0, **options))

    await stream.end(sampled("s1", seed=7), sampled("s2", seed=7), sampled("s3", seed=8), sampled("s4", seed=7))
    assert stream.texts["s1"] == stream.texts["s2"] == stream.texts["s4"]
    assert stream.texts["s1"] != stream.texts["s3"]


async def test_a_long_prompt_is_trimmed_as_declared(stream: Stream) -> None:
    [details] = await stream.end(stream.send(message("long", prompt="total = total + 1\n" * 200, max_tokens=1)))
    assert 0 < details["prompt_tokens"] <= 96
    assert details["trimmed_tokens"] > 0


async def test_sixteen_at_once_all_end(stream: Stream) -> None:
    names = [stream.send(message(f"p{number}", max_tokens=4)) for number in range(16)]
    for details in await stream.end(*names):
        assert details["finish_reason"] in ("stop", "length")
    assert len({tuple(stream.texts[name]) for name in names}) == 1


async def test_answers_come_in_the_order_in_which_they_are_done(stream: Stream) -> None:
    stream.send(message("slow", max_tokens=200))
    stream.send(message("quick", max_tokens=1))
    await stream.end("slow", "quick")
    assert stream.order.index("quick") < stream.order.index("slow")


async def test_a_cancelled_request_frees_its_slot(stream: Stream, metrics: Callable[[], Any]) -> None:
    names = [stream.send(message(f"c{number}", max_tokens=400, stream=True)) for number in range(2)]
    async with asyncio.timeout(60):
        await asyncio.gather(*(stream.first[name].wait() for name in names))
    waiting = stream.send(message("next", max_tokens=1))
    [answer] = await stream.end(stream.send(cancel_message("k", names[0])))
    assert answer == {}
    [details, after] = await stream.end(names[0], waiting)
    assert details["finish_reason"] == "cancelled"
    assert details["completion_tokens"] < 400
    assert after["completion_tokens"] == 1
    await stream.end(stream.send(cancel_message("k2", names[1])), names[1])

    async def idle() -> bool:
        seen = await metrics()
        return seen["hotstart_completion_running"] == 0 and seen["hotstart_completion_waiting"] == 0

    await until(idle, "an idle model")


async def test_a_request_cancelled_in_the_queue_never_runs(stream: Stream) -> None:
    running = [stream.send(message(f"r{number}", max_tokens=400, stream=True)) for number in range(2)]
    async with asyncio.timeout(60):
        await asyncio.gather(*(stream.first[name].wait() for name in running))
    queued = stream.send(message("queued", max_tokens=4))
    stream.send(cancel_message("kq", queued))
    [details] = await stream.end(queued)
    assert (details["finish_reason"], details["completion_tokens"], details["prefill_ms"]) == ("cancelled", 0, 0)
    assert not any(stream.ended[name].is_set() for name in running), "it was answered while the workers were busy"
    for name in running:
        stream.send(cancel_message(f"k-{name}", name))
    await stream.end(*running)


async def test_a_broken_stream_cancels_its_requests(
    completion_server: TritonServer, metrics: Callable[[], Any]
) -> None:
    before = (await metrics())['hotstart_completion_requests_total{outcome="cancelled"}']
    async with grpc.InferenceServerClient(completion_server.grpc) as client:
        stream = Stream(client)
        for number in range(6):
            stream.send(message(f"b{number}", max_tokens=400, stream=True))

        async def all_came() -> bool:
            seen = await metrics()
            return (seen["hotstart_completion_running"], seen["hotstart_completion_waiting"]) == (2, 4)

        await until(all_came, "two requests that run and four that wait")
        await stream.close()

    async def all_cancelled() -> bool:
        return bool((await metrics())['hotstart_completion_requests_total{outcome="cancelled"}'] >= before + 6)

    await until(all_cancelled, "six cancelled requests")


async def test_a_full_queue_says_overloaded_and_the_rest_goes_on(completion_server: TritonServer) -> None:
    async def one(client: grpc.InferenceServerClient, number: int) -> str:
        async def requests() -> AsyncIterator[dict[str, Any]]:
            yield message(f"o{number}", max_tokens=16)

        async for _, error in client.stream_infer(requests(), stream_timeout=60):
            return str(error) if error else "answered"
        return "nothing"

    async with grpc.InferenceServerClient(completion_server.grpc) as client:
        answers = await asyncio.gather(*(one(client, number) for number in range(40)))
    refused = [answer for answer in answers if "overloaded: " in answer]
    assert refused
    assert answers.count("answered") == 40 - len(refused) >= 16


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"prompt": ""}, "invalid: prompt is empty"),
        ({"prompt": "x", "suffix": "y"}, "invalid: suffix needs"),
        ({"prompt": "x", "options": "{"}, "invalid: options is no JSON"),
        ({"prompt": "x", "options": '{"max_tokens": 0}'}, "invalid: options.max_tokens"),
    ],
)
async def test_bad_requests_are_refused_by_name(
    completion_server: TritonServer, http: aiohttp.ClientSession, body: dict[str, str], error: str
) -> None:
    async with http.post(f"http://{completion_server.http}/v2/models/completion/generate", json=body) as response:
        assert error in (await response.json())["error"]


async def test_the_histogram_has_an_edge_at_the_slo(stream: Stream, metrics: Callable[[], Any]) -> None:
    before = (await metrics()).get("hotstart_completion_seconds_count", 0)
    await stream.end(stream.send(message("h", max_tokens=1)))

    async def counted() -> bool:
        return bool((await metrics())["hotstart_completion_seconds_count"] > before)

    await until(counted, "one more in the histogram")
    assert 'hotstart_completion_seconds_bucket{le="0.25"}' in await metrics()


async def test_errors_come_over_grpc_with_their_code(completion_server: TritonServer) -> None:
    async with grpc.InferenceServerClient(completion_server.grpc) as client:

        async def requests() -> AsyncIterator[dict[str, Any]]:
            yield message("bad", max_tokens=0)

        async for _, error in client.stream_infer(requests(), stream_timeout=30):
            assert isinstance(error, InferenceServerException)
            assert "invalid: options.max_tokens" in str(error)
            return
