"""The open loop against a server of our own: what it sends, how it counts, and that slow answers cannot hide."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from hotstart.loadtest.arrivals import Arrival, constant_arrivals
from hotstart.loadtest.drive import run_load
from hotstart.loadtest.pacing import SpinClock, make_clock
from hotstart.loadtest.plan import LoadPlan, make_constant_plan
from hotstart.loadtest.sample import Outcome, Progress

from .conftest import MODEL, FakeServer, answer_at_once, completion, error_response, stream_events

# The machine that runs the tests may be busy: only the tests of drift itself look at it.
ANY_DRIFT = 60.0


def make_plan(server: FakeServer, *, rate: float = 100, duration: float = 0.1, **more: Any) -> LoadPlan:
    plan = make_constant_plan(server.url, MODEL, rate=rate, duration=duration)
    return replace(plan, **{"drift_limit_s": ANY_DRIFT, **more})


async def test_every_request_of_the_plan_is_sent_and_answered(server: FakeServer) -> None:
    plan = replace(make_plan(server), headers={"Authorization": "Bearer t"})
    result = await run_load(plan)
    figures = result.to_json()
    assert (figures["planned"], figures["requests"], figures["ok"], figures["failed"]) == (10, 10, 10, 0)
    assert figures["completion_tokens"] == 30
    assert not result.void
    assert {body["model"] for body in server.bodies} == {MODEL}
    assert all((body["max_tokens"], body["stream"], body["temperature"]) == (32, False, 0) for body in server.bodies)
    assert sorted(body["prompt"] for body in server.bodies) == sorted(plan.prompts[a.prompt] for a in plan.arrivals)
    assert all(headers["Authorization"] == "Bearer t" for headers in server.headers)


async def test_a_stall_shows_in_all_requests_that_were_meant_to_go_during_it(server: FakeServer) -> None:
    """Coordinated omission: a closed loop would send one request into the stall and report one slow answer."""
    one_at_a_time = asyncio.Lock()

    async def stall_once(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        async with one_at_a_time:
            if len(server.bodies) == 1:
                await asyncio.sleep(0.3)
            return web.json_response(completion())

    server.behave = stall_once
    result = await run_load(make_plan(server, rate=50, duration=0.3))
    stalled = [sample for sample in result.samples if sample.intended < 0.25]
    assert len(stalled) == 13
    for sample in stalled:  # each waited for what was left of the stall when it was meant to go
        assert sample.latency >= 0.3 - sample.intended - 0.001
    assert result.summary.latency.p50 is not None
    assert result.summary.latency.p50 > 0.1


async def test_a_slow_server_does_not_hold_back_the_next_request(server: FakeServer) -> None:
    everyone_is_here = asyncio.Barrier(20)

    async def wait_for_all(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await everyone_is_here.wait()
        return web.json_response(completion())

    server.behave = wait_for_all
    result = await run_load(make_plan(server, rate=200, duration=0.1))
    assert result.summary.ok == 20


async def test_latency_counts_from_the_intended_time_even_when_the_generator_was_late(server: FakeServer) -> None:
    class LateClock(SpinClock):
        async def sleep_until(self, when: float) -> None:
            await super().sleep_until(when + 0.05)

    plan = replace(make_plan(server, rate=10, duration=0.3), drift_limit_s=0.005)
    result = await run_load(plan, clock=LateClock())
    assert result.void
    assert result.summary.drift.p99 is not None
    assert result.summary.drift.p99 >= 0.05
    late = [sample for sample in result.samples if sample.intended > 0]
    assert all(sample.latency >= sample.drift >= 0.05 for sample in late)
    assert "void" in result.to_json()["void_reason"]


async def test_a_clock_that_never_lags_gives_no_drift(server: FakeServer) -> None:
    class FrozenClock:
        """Time passes only by sleeping, so nothing can be late."""

        time = 1000.0
        slept = 0

        def now(self) -> float:
            return self.time

        async def sleep_until(self, when: float) -> None:
            self.slept += 1
            while len(server.bodies) < self.slept:  # noqa: ASYNC110 - what was sent has left before time goes on
                await asyncio.sleep(0.001)
            self.time = when

        def close(self) -> None:
            raise AssertionError("the caller's clock is the caller's to close")

    clock = FrozenClock()
    result = await run_load(make_plan(server, rate=10, duration=1), clock=clock)
    assert result.summary.drift.max == 0
    assert clock.time == pytest.approx(1000.9)
    assert [round(sample.intended, 3) for sample in result.samples] == [round(i / 10, 3) for i in range(10)]


async def test_failures_are_told_by_status_and_by_the_servers_own_words(server: FakeServer) -> None:
    async def every_other(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if len(server.bodies) % 2:
            return error_response(429, "the queue is full")
        return await answer_at_once(request, body)

    server.behave = every_other
    result = await run_load(make_plan(server))
    assert (result.summary.ok, result.summary.failures) == (5, {"http_429": 5})
    assert result.summary.failure_details == {"http_429": "the queue is full"}


async def _not_json(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return web.Response(text="<html>proxy</html>")


async def _no_choices(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return web.json_response({"choices": []})


async def _a_list(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return web.json_response([1])


async def _plain_500(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return web.Response(status=500, text="boom")


async def _hang_up(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def _cut_in_the_body(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b"{")
    assert request.transport is not None
    request.transport.close()
    return response


@pytest.mark.parametrize(
    ("behave", "reason"),
    [
        (_not_json, "bad_response"),
        (_no_choices, "bad_response"),
        (_a_list, "bad_response"),
        (_plain_500, "http_500"),
        (_hang_up, "connection_lost"),
        (_cut_in_the_body, "cut_short"),
    ],
)
async def test_what_is_no_completion_is_a_failure(server: FakeServer, behave: Any, reason: str) -> None:
    server.behave = behave
    result = await run_load(make_plan(server, rate=50))
    assert result.summary.failures == {reason: 5}
    assert result.summary.failure_details[reason]


async def test_a_refused_connection_is_a_failure_and_not_drift(free_port: int) -> None:
    plan = make_constant_plan(f"http://127.0.0.1:{free_port}", MODEL, rate=50, duration=0.1)
    result = await run_load(replace(plan, drift_limit_s=ANY_DRIFT))
    assert result.summary.failures == {"connect": 5}


async def test_a_request_without_its_last_byte_in_time_has_failed(server: FakeServer) -> None:
    forever = asyncio.Event()

    async def never(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await forever.wait()
        return web.Response()

    server.behave = never
    result = await run_load(make_plan(server, rate=50, timeout_s=0.15))
    assert result.summary.failures == {"timeout": 5}
    assert all(sample.latency >= 0.149 for sample in result.samples)


async def test_streams_report_the_first_token_and_the_servers_count(server: FakeServer) -> None:
    async def slowly(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b': a comment\n\ndata: {"choices":[{"text":""}]}\n\n')
        await response.write(b'data: {"choices":[{"text":"a"}]}\n\n')
        await asyncio.sleep(0.05)
        await response.write(b'data: {"choices":[{"text":"b"}],"usage":{"completion_tokens":7}}\n\ndata: [DONE]\n\n')
        return response

    server.behave = slowly
    result = await run_load(make_plan(server, rate=50, stream=True))
    assert all(body["stream"] is True for body in server.bodies)
    assert result.summary.ok == 5
    for sample in result.samples:
        assert sample.first_token is not None
        assert sample.first_token < sample.latency
        assert (sample.tokens, sample.chunks) == (7, 2)
    figures = result.to_json()
    assert figures["completion_tokens"] == 35
    assert 0 < figures["first_token_p50_ms"] < figures["p50_ms"]


@pytest.mark.parametrize(
    ("events", "done", "reason"),
    [
        ([{"choices": [{"text": "a"}]}], False, "cut_short"),
        ([{"choices": [{"text": "a"}]}, {"error": {"message": "engine died"}}], True, "stream_error"),
    ],
)
async def test_a_stream_that_ends_badly_is_a_failure(
    server: FakeServer, events: list[dict[str, Any]], done: bool, reason: str
) -> None:
    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return await stream_events(request, events, done=done)

    server.behave = behave
    result = await run_load(make_plan(server, rate=50, stream=True))
    assert result.summary.failures == {reason: 5}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_cancelled_request_is_a_disconnect_that_the_server_sees(server: FakeServer, stream: bool) -> None:
    seen = asyncio.Event()

    async def hold_the_cancelled(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if body["max_tokens"] == 1:
            try:
                await asyncio.Event().wait()
            finally:
                seen.set()
        if stream:
            return await stream_events(request, [{"choices": [{"text": "a"}]}])
        return await answer_at_once(request, body)

    server.behave = hold_the_cancelled
    arrivals = (Arrival(0.0), Arrival(0.01, max_tokens=1, cancel=True), Arrival(0.02))
    result = await run_load(
        LoadPlan(server.url, MODEL, arrivals, stream=stream, cancel_after_s=0.1, drift_limit_s=ANY_DRIFT)
    )
    assert [sample.outcome for sample in result.samples] == [Outcome.OK, Outcome.CANCELLED, Outcome.OK]
    assert result.samples[1].latency >= 0.099
    await asyncio.wait_for(seen.wait(), 10)
    assert server.aborted == 1


async def test_an_answer_before_the_cancel_counts_as_an_answer(server: FakeServer) -> None:
    arrivals = (Arrival(0.0, cancel=True),)
    result = await run_load(LoadPlan(server.url, MODEL, arrivals, cancel_after_s=20, drift_limit_s=ANY_DRIFT))
    assert (result.summary.ok, result.summary.cancelled) == (1, 0)


async def test_stopping_ends_the_run_with_what_was_done(server: FakeServer) -> None:
    stop = asyncio.Event()

    async def first_then_never(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if len(server.bodies) <= 3:
            return await answer_at_once(request, body)
        stop.set()
        await asyncio.Event().wait()
        return web.Response()

    server.behave = first_then_never
    result = await run_load(make_plan(server, rate=50, duration=600), stop=stop)
    assert result.interrupted
    assert result.summary.ok == 3
    assert result.summary.unfinished >= 1
    assert result.summary.requests < 100
    assert result.to_json()["planned"] == 30_000
    assert result.summary.rate > 0


async def test_progress_is_told_while_it_runs_and_at_the_end(server: FakeServer) -> None:
    told: list[Progress] = []
    await run_load(make_plan(server, rate=50, duration=0.5), progress=told.append)
    assert len(told) >= 2
    assert [latest.sent for latest in told] == sorted(latest.sent for latest in told)
    assert (told[-1].sent, told[-1].ok, told[-1].done, told[-1].planned) == (25, 25, 25, 25)


async def test_a_fault_of_our_own_ends_the_run_loudly(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise LookupError("a bug")

    monkeypatch.setattr("hotstart.loadtest.answer._usage_tokens", broken)
    with pytest.raises(LookupError, match="a bug"):
        await run_load(make_plan(server, rate=50, duration=600))


async def test_a_fault_while_connecting_ends_the_run_loudly_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_: object) -> None:
        raise LookupError("a bug")

    monkeypatch.setattr("hotstart.loadtest.connection.ConnectionPool.open", broken)
    with pytest.raises(LookupError, match="a bug"):
        await run_load(make_constant_plan("http://127.0.0.1:9", MODEL, rate=50, duration=600))


async def test_a_burst_at_one_instant_is_sent_as_one(server: FakeServer) -> None:
    arrivals = tuple(replace(arrival, offset=0.05) for arrival in constant_arrivals(100, 1))
    result = await run_load(LoadPlan(server.url, MODEL, arrivals, drift_limit_s=ANY_DRIFT))
    assert result.summary.ok == 100


@pytest.mark.parametrize("make", [SpinClock, make_clock])
async def test_clocks_never_wake_early(make: Any) -> None:
    clock = make()
    try:
        for ahead in (0.02, 0.001, 0.0, -1.0, 0.0003):
            when = clock.now() + ahead
            await clock.sleep_until(when)
            assert clock.now() >= when
    finally:
        clock.close()


async def test_a_clock_sleeps_anew_after_a_cancelled_sleep() -> None:
    clock = make_clock()
    try:
        sleeper = asyncio.create_task(clock.sleep_until(clock.now() + 3600))
        await asyncio.sleep(0)
        sleeper.cancel()
        await asyncio.wait({sleeper})
        when = clock.now() + 0.01
        await clock.sleep_until(when)
        assert clock.now() >= when
    finally:
        clock.close()
