"""The data path end to end against the fake Triton: completions, streams, errors, disconnects, retries."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from hotstart.router.statistics import Outcome

from tests.router.bench import MODEL, Bench, StartFake, make_route, until
from tests.support.fake_triton import FakeTriton
from tests.support.scripts import TEXT, script


async def test_a_completion_has_openais_shape_and_the_models_text(bench: Bench, triton: FakeTriton) -> None:
    await bench.serve(triton)
    async with bench.post(
        suffix="\n", max_tokens=8, temperature=0.5, top_p=0.9, stop="\n\n", seed=7, user="u"
    ) as response:
        assert response.status == 200
        answer = await response.json()
    assert answer["object"] == "text_completion" and answer["model"] == MODEL and answer["id"].startswith("cmpl-")
    assert answer["choices"] == [{"text": TEXT, "index": 0, "logprobs": None, "finish_reason": "stop"}]
    assert answer["usage"] == {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    [seen] = triton.seen
    assert (seen.prompt, seen.suffix, seen.id) == ("def f(x):", "\n", answer["id"])
    assert seen.options == {
        "max_tokens": 8, "stream": False, "temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": ["\n\n"]
    }  # fmt: skip


async def test_what_the_client_does_not_say_is_left_to_the_model(bench: Bench, triton: FakeTriton) -> None:
    await bench.serve(triton, max_new_tokens=24)
    async with bench.post(prompt=["one string"]) as response:
        assert response.status == 200
    async with bench.post(max_tokens=1000) as response:
        assert response.status == 200
    assert triton.prompts == ["one string", "def f(x):"]
    assert [seen.options for seen in triton.seen] == [{"max_tokens": 24, "stream": False}] * 2
    assert [seen.suffix for seen in triton.seen] == [None, None]


async def events(response: Any) -> list[str]:
    body = (await response.read()).decode()
    assert body.endswith("\n\n")
    lines = body[:-2].split("\n\n")
    assert all(line.startswith("data: ") for line in lines)
    return [line.removeprefix("data: ") for line in lines]


async def test_a_stream_ends_with_reason_usage_and_done(bench: Bench, triton: FakeTriton) -> None:
    await bench.serve(triton)
    prompt = script(steps=3, text="né\u2028", finish="length")
    async with bench.post(prompt=prompt, stream=True, stream_options={"include_usage": True}) as response:
        assert response.status == 200 and response.content_type == "text/event-stream"
        *chunks, done = await events(response)
    assert done == "[DONE]"
    *texts, usage = map(json.loads, chunks)
    assert [chunk["choices"][0]["text"] for chunk in texts] == ["né\u2028"] * 3
    assert [chunk["choices"][0]["finish_reason"] for chunk in texts] == [None, None, "length"]
    assert all(chunk["usage"] is None for chunk in texts) and len({chunk["id"] for chunk in texts}) == 1
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}


async def test_a_stream_without_include_usage_has_no_usage(bench: Bench, triton: FakeTriton) -> None:
    await bench.serve(triton)
    async with bench.post(stream=True) as response:
        chunk, done = await events(response)
    assert "usage" not in json.loads(chunk) and done == "[DONE]"


async def test_a_model_that_refuses_is_a_400_and_one_that_fails_a_500(bench: Bench, triton: FakeTriton) -> None:
    await bench.serve(triton)
    async with bench.post(prompt=script(error="invalid: stop has too many strings")) as response:
        assert response.status == 400
        assert "stop has too many strings" in (await response.json())["error"]["message"]
    async with bench.post(prompt=script(error="internal: tensor of the wrong shape at 0x7f")) as response:
        assert response.status == 500
        error = (await response.json())["error"]
    assert error["type"] == "server_error" and "0x7f" not in error["message"]


async def test_a_suffix_that_the_format_has_no_place_for_never_reaches_triton(bench: Bench, triton: FakeTriton) -> None:
    await bench.serve(triton, prompt_format="plain")
    async with bench.post(suffix="\n") as response:
        assert response.status == 400
        error = (await response.json())["error"]
    assert (error["param"], error["code"]) == ("suffix", "unsupported_parameter")
    assert (await _read(bench, suffix=""))[0] == 200
    assert len(triton.seen) == 1
    for other in ("fim", "", "a format of later versions"):
        await bench.serve(triton, prompt_format=other)
        assert (await _read(bench, suffix="\n"))[0] == 200


async def test_a_request_that_the_model_calls_a_mistake_is_no_failure(bench: Bench, triton: FakeTriton) -> None:
    await bench.serve(triton)
    assert (await _read(bench, prompt=script(error="invalid: no such thing")))[0] == 400
    assert (await _read(bench, prompt=script(error="internal: broken")))[0] == 500
    assert bench.lane.counters.outcomes == {Outcome.REJECTED: 1, Outcome.FAILED: 1}


async def test_a_stream_that_fails_ends_with_an_error_event(bench: Bench, triton: FakeTriton) -> None:
    await bench.serve(triton)
    async with bench.post(prompt=script(steps=3, error="internal: no"), stream=True) as response:
        assert response.status == 200
        *chunks, last = await events(response)
    assert len(chunks) == 2 and json.loads(last)["error"]["type"] == "server_error"


async def test_a_client_that_leaves_ends_its_generation_and_frees_the_slot(
    bench: Bench, triton: FakeTriton, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.serve(triton, cap=1)
    for stream in (False, True):
        post = asyncio.create_task(_read(bench, prompt=script(steps=1000, step_ms=10), stream=stream))
        await until(lambda: triton.running)
        [name] = triton.running
        post.cancel()
        await until(lambda name=name: name in triton.cancelled)  # type: ignore[misc]
        await until(lambda: bench.lane.in_flight == 0)
    async with bench.post() as response:
        assert response.status == 200
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def _read(bench: Bench, **body: Any) -> tuple[int, Any]:
    async with bench.post(**body) as response:
        await response.read()
        return response.status, (await response.json(content_type=None) if not body.get("stream") else None)


async def test_a_client_that_leaves_the_queue_never_reaches_triton(bench: Bench, triton: FakeTriton) -> None:
    await bench.serve(triton, cap=1)
    first = asyncio.create_task(_read(bench, prompt=script(steps=20, step_ms=10)))
    await until(lambda: triton.running)
    second = asyncio.create_task(_read(bench, prompt="second"))
    await until(lambda: bench.lane.queued == 1)
    second.cancel()
    await until(lambda: bench.lane.queued == 0)
    assert (await first)[0] == 200
    assert "second" not in triton.prompts and bench.lane.in_flight == 0


async def test_a_full_queue_is_a_429_with_retry_after(bench: Bench, triton: FakeTriton) -> None:
    await bench.serve(triton, cap=1, queue_limit=1)
    waiting = [asyncio.create_task(_read(bench, prompt=script(steps=20, step_ms=10))) for _ in range(2)]
    await until(lambda: bench.lane.queued == 1)
    async with bench.post() as response:
        assert response.status == 429 and int(response.headers["Retry-After"]) >= 1
        error = (await response.json())["error"]
    assert error["code"] == "queue_full" and error["type"] == "rate_limit_error"
    assert [status for status, _ in await asyncio.gather(*waiting)] == [200, 200]


async def test_a_request_that_waits_longer_than_the_deadline_is_a_429(bench: Bench, triton: FakeTriton) -> None:
    await bench.serve(triton, cap=1, queue_deadline=0.05)
    first = asyncio.create_task(_read(bench, prompt=script(steps=30, step_ms=10)))
    await until(lambda: triton.running)
    async with bench.post() as response:
        assert response.status == 429 and int(response.headers["Retry-After"]) >= 1
        assert (await response.json())["error"]["code"] == "queue_deadline"
    assert (await first)[0] == 200


async def test_a_retried_request_does_not_keep_the_others_past_their_deadline(
    bench: Bench, start_fake: StartFake
) -> None:
    one, two = await start_fake(), await start_fake()
    await bench.serve(one, two, cap=1, queue_deadline=1.0)
    long = script(steps=400, step_ms=10)
    running = [asyncio.create_task(_read(bench, prompt=long)) for _ in range(2)]
    await until(lambda: one.running and two.running)
    waiting = asyncio.create_task(_read(bench))
    await until(lambda: bench.lane.queued == 1)
    await asyncio.sleep(0.5)  # so that the retried one would end later
    await two.kill()
    await until(lambda: bench.lane.queued == 2)
    await waiting
    assert bench.lane.queued == 1, "the retried request stands before it and waits on"
    assert waiting.result()[1]["error"]["code"] == "queue_deadline"
    assert {status for status, _ in await asyncio.gather(*running)} == {200, 429}


async def test_a_free_pod_serves_a_newcomer_while_its_lost_request_waits_for_another(
    bench: Bench, start_fake: StartFake
) -> None:
    one, two = await start_fake(), await start_fake()
    await bench.serve(one, two, cap=1, queue_limit=1)
    running = [asyncio.create_task(_read(bench, prompt=script(steps=200, step_ms=10))) for _ in range(2)]
    await until(lambda: one.running and two.running)
    await two.kill()
    await until(lambda: bench.lane.queued == 1)
    await two.start()
    await bench.answering(2)
    assert (await _read(bench))[0] == 200
    assert bench.lane.queued == 1, "the request that the pod had lost still waits"
    assert [status for status, _ in await asyncio.gather(*running)] == [200, 200]


async def test_a_request_is_held_until_the_first_replica_comes(bench: Bench, triton: FakeTriton) -> None:
    await bench.operator.send(make_route(coming=True))
    held = asyncio.create_task(_read(bench))
    await until(lambda: bench.lane.queued == 1)
    await bench.operator.send(make_route(triton))
    assert (await held)[0] == 200


async def test_a_hold_that_expires_is_a_503(bench: Bench) -> None:
    await bench.operator.send(make_route(coming=True, hold=0.05, unavailable_reason="EngineBuilding: 40 %"))
    async with bench.post() as response:
        assert response.status == 503
        error = (await response.json())["error"]
    assert error["code"] == "replica_not_ready" and "EngineBuilding: 40 %" in error["message"]


async def test_no_replica_and_none_coming_is_a_503_with_the_models_reason(bench: Bench) -> None:
    await bench.operator.send(make_route(unavailable_reason="the checkpoint's bucket does not exist"))
    async with bench.post() as response:
        assert response.status == 503
        error = (await response.json())["error"]
    assert error["code"] == "model_unavailable" and "bucket does not exist" in error["message"]


async def test_a_held_request_is_refused_when_no_replica_comes_any_more(bench: Bench) -> None:
    await bench.operator.send(make_route(coming=True))
    held = asyncio.create_task(_read(bench))
    await until(lambda: bench.lane.queued == 1)
    await bench.operator.send(make_route(unavailable_reason="BuildFailed"))
    status, body = await held
    assert status == 503 and "BuildFailed" in body["error"]["message"]


async def test_a_request_lost_with_its_pod_is_served_by_another(bench: Bench, start_fake: StartFake) -> None:
    one, two = await start_fake(), await start_fake()
    await bench.serve(one, two)
    slow = script(steps=60, step_ms=10, text="y")
    posts = [asyncio.create_task(_read(bench, prompt=slow)) for _ in range(4)]
    await until(lambda: len(one.running) == 2 and len(two.running) == 2)
    await one.kill()
    assert [status for status, _ in await asyncio.gather(*posts)] == [200] * 4
    assert len(two.seen) == 4 and bench.lane.counters.retries == 2
    await bench.answering(1)


async def test_a_stream_lost_after_its_first_byte_ends_with_an_error(bench: Bench, start_fake: StartFake) -> None:
    one, two = await start_fake(), await start_fake()
    await bench.serve(one, two)
    async with bench.post(prompt=script(steps=1000, step_ms=5), stream=True) as response:
        await response.content.readuntil(b"\n\n")
        victim, other = (one, two) if one.running else (two, one)
        await victim.kill()
        rest = (await response.read()).decode()
    assert json.loads(rest.rstrip().rpartition("data: ")[2])["error"]["code"] == "replica_lost"
    assert not other.seen


async def test_a_request_lost_with_the_only_pod_is_a_503_and_the_pod_is_taken_in_again(
    bench: Bench, triton: FakeTriton
) -> None:
    await bench.serve(triton)
    post = asyncio.create_task(_read(bench, prompt=script(steps=1000, step_ms=5)))
    await until(lambda: triton.running)
    await triton.kill()
    status, body = await post
    assert status == 503 and body["error"]["code"] == "replica_lost"
    waiting = asyncio.create_task(_read(bench))
    await triton.start()
    assert (await waiting)[0] == 200


async def test_a_pod_that_stops_answering_is_left_out_until_it_answers(bench: Bench, start_fake: StartFake) -> None:
    one, two = await start_fake(), await start_fake()
    await bench.serve(one, two)
    one.freeze()
    await bench.answering(1)
    statuses = await asyncio.gather(*(_read(bench) for _ in range(8)))
    assert {status for status, _ in statuses} == {200} and not one.seen
    one.thaw()
    await bench.answering(2)


async def test_a_pod_that_is_ending_finishes_what_it_has_and_is_let_go(bench: Bench, triton: FakeTriton) -> None:
    await bench.serve(triton)
    longer_than_a_lost_pod_has = script(steps=300, step_ms=10)  # 3 s
    post = asyncio.create_task(_read(bench, prompt=longer_than_a_lost_pod_has))
    await until(lambda: triton.running)
    triton.ready = False
    await bench.answering(0)
    assert triton.streams == 1 and not post.done()
    assert (await post)[0] == 200
    await until(lambda: triton.streams == 0)


async def test_requests_on_a_frozen_pod_go_to_another(bench: Bench, start_fake: StartFake) -> None:
    one, two = await start_fake(), await start_fake()
    await bench.serve(one, two)
    posts = [asyncio.create_task(_read(bench, prompt=script(steps=20, step_ms=10))) for _ in range(2)]
    await until(lambda: one.running and two.running)
    one.freeze()
    assert [status for status, _ in await asyncio.gather(*posts)] == [200, 200]
    assert len(two.seen) == 2


async def test_silent_replicas_are_a_503_after_the_deadline(bench: Bench, triton: FakeTriton) -> None:
    await bench.serve(triton, queue_deadline=0.3)
    triton.freeze()
    await bench.answering(0)
    async with bench.post() as response:
        assert response.status == 503
        assert (await response.json())["error"]["code"] == "replicas_silent"


async def test_an_overloaded_pod_is_asked_no_more_than_another(bench: Bench, start_fake: StartFake) -> None:
    one, two = await start_fake(), await start_fake()
    await bench.serve(one, two)
    async with bench.post(prompt=script(error="overloaded: the queue is full")) as response:
        assert response.status == 429 and response.headers["Retry-After"]
        assert (await response.json())["error"]["code"] == "overloaded"
    assert len(one.seen) == len(two.seen) == 1


async def test_a_pod_gets_no_more_than_its_cap(bench: Bench, start_fake: StartFake) -> None:
    one, two = await start_fake(), await start_fake()
    await bench.serve(one, two, cap=3)
    posts = await asyncio.gather(*(_read(bench, prompt=script(steps=2, step_ms=5)) for _ in range(40)))
    assert {status for status, _ in posts} == {200}
    assert one.most_running == two.most_running == 3
    assert len(one.seen) + len(two.seen) == 40


async def test_a_generation_without_an_end_is_a_504_and_is_cancelled(bench: Bench, triton: FakeTriton) -> None:
    bench.program.completions.request_timeout = 0.05
    await bench.serve(triton)
    async with bench.post(prompt=script(steps=1000, step_ms=10)) as response:
        assert response.status == 504
        assert (await response.json())["error"]["code"] == "timeout"
    await until(lambda: triton.cancelled and bench.lane.in_flight == 0)
