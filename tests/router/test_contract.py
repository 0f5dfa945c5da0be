"""What the router relies on in a Triton, held against the fake and the real server with the same scripts.

The other tests use the fake; this one shows that it behaves as Triton does: ids come back with errors, empty final
messages arrive, one stream carries many requests side by side, a cancel message ends one of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hotstart.router.call import Call, PodLost, Refused
from hotstart.router.health import Check
from hotstart.router.pod_stream import PodStream
from hotstart.router.wire import Fault, Piece, make_request

from tests.router.bench import until
from tests.support.fake_triton import FakeTriton
from tests.support.scripts import TEXT, script
from tests.support.triton import REPOSITORY_ROOT, TritonServer, start_triton

SCRIPTED_MODEL = REPOSITORY_ROOT / "tests/support/scripted_model"


@dataclass
class Double:
    """Either server behind one face."""

    stream: PodStream
    kill: Callable[[], Awaitable[None]]
    start: Callable[[], Awaitable[None]]
    end: Callable[[], None]  # as the kubelet ends a pod
    broken: list[bool]

    def begin(self, name: str, prompt: str, *, stream: bool = False) -> tuple[Call, list[bool]]:
        ended: list[bool] = []
        options = b'{"stream":true}' if stream else b'{"stream":false}'
        call = Call(name, make_request(name, prompt, None, options), lambda: ended.append(True))
        self.stream.send(call)
        return call, ended


async def read_all(call: Call) -> list[Piece]:
    pieces = [await call.next()]
    while not pieces[-1].final:
        pieces.append(await call.next())
    return pieces


async def until_answers(stream: PodStream) -> None:
    async with asyncio.timeout(20):
        while await stream.check(1.0) is not Check.READY:  # noqa: ASYNC110 - a server has no event for it
            await asyncio.sleep(0.02)


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.integration)])
async def double(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Double]:
    broken: list[bool] = []
    kill: Callable[[], Awaitable[None]]
    start: Callable[[], Awaitable[None]]
    end: Callable[[], None]
    if request.param == "fake":
        fake = await FakeTriton().start()
        address, kill = fake.address, fake.kill

        async def start_fake() -> None:
            await fake.start()

        def end_fake() -> None:
            fake.ready = False

        start, end = start_fake, end_fake
    else:
        real = await asyncio.to_thread(start_triton, SCRIPTED_MODEL, load=("completion",), log=tmp_path / "triton.log")
        servers: list[TritonServer] = [real]
        address = real.grpc

        async def kill_real() -> None:
            await asyncio.to_thread(servers[-1].kill)

        async def start_real() -> None:
            like = servers[-1].plan
            servers.append(await asyncio.to_thread(start_triton, SCRIPTED_MODEL, like=like, log=tmp_path / "again.log"))

        kill, start, end = kill_real, start_real, real.process.terminate
    stream = PodStream(address, lambda: broken.append(True))
    try:
        await until_answers(stream)
        yield Double(stream, kill, start, end, broken)
    finally:
        await stream.close()
        await kill()


async def test_one_final_message_carries_text_and_details(double: Double) -> None:
    call, ended = double.begin("one", "def f(x):")
    [piece] = await read_all(call)
    assert piece.text == TEXT and piece.details is not None
    assert (piece.details.finish_reason, piece.details.completion_tokens) == ("stop", 1)
    assert ended == [True]


async def test_a_stream_gives_its_texts_in_order(double: Double) -> None:
    call, _ = double.begin("one", script(steps=4, text="é\x00\n", finish="length"), stream=True)
    pieces = await read_all(call)
    assert [piece.text for piece in pieces] == ["é\x00\n"] * 4
    assert [piece.final for piece in pieces] == [False, False, False, True]
    assert pieces[-1].details is not None and pieces[-1].details.finish_reason == "length"


async def test_requests_of_one_stream_run_side_by_side(double: Double) -> None:
    slow, _ = double.begin("slow", script(steps=200, step_ms=10), stream=True)
    await slow.next()
    quick = [double.begin(f"quick-{number}", "def f(x):")[0] for number in range(20)]
    answers = await asyncio.gather(*(read_all(call) for call in quick))
    assert [[piece.text for piece in pieces] for pieces in answers] == [[TEXT]] * 20
    assert not slow.over
    double.stream.cancel(slow)
    await until(lambda: slow.over)


async def test_a_cancel_message_ends_one_request_and_no_other(double: Double) -> None:
    one, ended = double.begin("one", script(steps=10_000, step_ms=5))
    two, _ = double.begin("two", script(steps=40, step_ms=5))
    await asyncio.sleep(0)
    double.stream.cancel(one)
    [piece] = await read_all(one)
    assert piece.details is not None and piece.details.finish_reason == "cancelled" and ended == [True]
    [piece] = await read_all(two)
    assert piece.text == "x" * 40


@pytest.mark.parametrize("fault", [Fault.INVALID, Fault.OVERLOADED, Fault.INTERNAL])
async def test_an_error_names_its_request_and_leaves_the_others_alone(double: Double, fault: Fault) -> None:
    other, _ = double.begin("other", script(steps=20, step_ms=5))
    call, ended = double.begin("one", script(steps=1, error=f"{fault}: because"))
    with pytest.raises(Refused) as refused:
        await call.next()
    assert (refused.value.refusal.fault, refused.value.refusal.message) == (fault, "because")
    assert ended == [True] and not double.broken
    assert (await read_all(other))[0].text == "x" * 20


async def test_a_request_that_triton_itself_refuses_leaves_the_others_alone(double: Double) -> None:
    other, _ = double.begin("other", script(steps=20, step_ms=5))
    message = make_request("unknown", "def f(x):", None, b"{}")
    message.model_name = "nonesuch"
    call = Call("unknown", message, lambda: None)
    double.stream.send(call)
    with pytest.raises(Refused) as refused:
        await call.next()
    assert refused.value.refusal.fault is Fault.UNAVAILABLE
    assert (await read_all(other))[0].text == "x" * 20 and not double.broken


async def test_death_loses_every_request_and_the_next_life_serves(double: Double) -> None:
    calls = [double.begin(f"one-{number}", script(steps=10_000, step_ms=5))[0] for number in range(3)]
    streamed, _ = double.begin("two", script(steps=10_000, step_ms=5), stream=True)
    await streamed.next()
    await double.kill()
    for call in calls:
        with pytest.raises(PodLost):
            await call.next()
    assert double.broken == [True]
    assert await double.stream.check(0.5) is Check.NO_ANSWER
    await double.start()
    await until_answers(double.stream)
    assert (await read_all(double.begin("again", "def f(x):")[0]))[0].text == TEXT


async def test_one_that_is_told_to_end_says_so_and_finishes_what_it_has(double: Double) -> None:
    call, _ = double.begin("one", script(steps=40, step_ms=10), stream=True)
    await call.next()
    double.end()
    checks: list[Check] = []
    while Check.NOT_READY not in checks:
        checks.append(await double.stream.check(1.0))
    assert set(checks) <= {Check.READY, Check.NOT_READY}
    assert len(await read_all(call)) == 39 and not double.broken
