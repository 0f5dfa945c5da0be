"""The agent in the test's own process, beside a Triton and a disk that fail on demand."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientTimeout, web
from hotstart.engines.pod_agent import triton_client
from hotstart.engines.pod_agent.agent import LOST_WHILE_LOADING, Agent
from hotstart.engines.pod_agent.disk import Disk, Remembered
from hotstart.engines.pod_agent.loading import Loader
from hotstart.engines.pod_agent.triton_client import Counts, TritonClient, TritonGone, TritonSlow
from hotstart.exchange.messages import EngineFile, PodAssignment, PodReport, PodRequest, PodState

from tests.support.pod import ENGINE_KEY, make_assignment, make_serving, until
from tests.support.triton import free_port

CONTENT = b"engine"


@dataclass
class PlayedTriton:
    """Live, with nothing loaded; ``load`` and ``generate`` raise what they are told to."""

    on_load: Callable[[], Exception | None] = lambda: None
    on_generate: Callable[[], Exception | None] = lambda: None
    loads: int = 0

    async def wait_live(self) -> None:
        """It is."""

    async def is_ready(self, model: str = "") -> bool:
        return self.loads > 0

    async def parameters(self, model: str = "") -> None:
        return None

    async def counts(self) -> Counts:
        return Counts()

    async def load(self, model: str = "") -> None:
        await asyncio.sleep(0)
        if error := self.on_load():
            raise error
        self.loads += 1

    async def generate(self, **_: Any) -> tuple[str, dict[str, Any]]:
        await asyncio.sleep(0)
        if error := self.on_generate():
            raise error
        return "x", {}


@dataclass(frozen=True)
class FailingDisk(Disk):
    """Refuses to remember, or to write the repository, as often as it is told to."""

    remember_errors: list[OSError] = field(default_factory=list)
    repository_errors: list[OSError] = field(default_factory=list)

    def remember(self, remembered: Remembered) -> None:
        if self.remember_errors:
            raise self.remember_errors.pop()
        super().remember(remembered)

    def write_repository(self, files: dict[str, str]) -> None:
        if self.repository_errors:
            raise self.repository_errors.pop()
        super().write_repository(files)


@pytest.fixture
def disk(tmp_path: Path) -> FailingDisk:
    """With the engine on it, so that nothing needs to be fetched."""
    made = FailingDisk(tmp_path / "models", tmp_path / "run")
    made.prepare()
    made.engine(ENGINE_KEY).mkdir()
    (made.engine(ENGINE_KEY) / "f").write_bytes(CONTENT)
    return made


REQUEST = PodRequest(
    assignment=make_assignment(),
    files=(EngineFile(path="f", size=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest()),),
)


@contextlib.asynccontextmanager
async def running(disk: Disk, triton: PlayedTriton) -> AsyncIterator[Agent]:
    agent = Agent(uid="u", disk=disk, triton=triton)  # type: ignore[arg-type]
    task = asyncio.create_task(agent.run())
    try:
        yield agent
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def reach(agent: Agent, state: PodState, request: PodRequest = REQUEST) -> PodReport:
    reports: list[PodReport] = []

    async def there() -> bool:
        reports.append(await agent.take(request))
        return reports[-1].state is state

    await until(there, state.value, seconds=20.0)
    return reports[-1]


async def test_a_disk_that_does_not_take_the_assignment_keeps_no_pod_from_serving(disk: FailingDisk) -> None:
    disk.remember_errors.extend([OSError(errno.ENOSPC, "No space left on device")] * 2)
    async with running(disk, PlayedTriton()) as agent:
        await reach(agent, PodState.READY)
        for _ in range(2):
            await agent.take(REQUEST)
    remembered = disk.recall()
    assert remembered is not None and remembered.assignment == REQUEST.assignment, "tried again at the next message"


@pytest.mark.parametrize(
    ("number", "reason"), [(errno.ENOSPC, "DiskFull"), (errno.EDQUOT, "DiskFull"), (errno.EIO, "InternalError")]
)
async def test_what_the_disk_refuses_in_a_step_is_told_and_tried_again(
    disk: FailingDisk, number: int, reason: str
) -> None:
    disk.repository_errors.append(OSError(number, "the disk's own words"))
    async with running(disk, PlayedTriton()) as agent:
        failure = (await reach(agent, PodState.FAILED)).failure
        assert failure is not None and failure.retryable
        assert failure.reason == reason and "the disk's own words" in failure.message
        await reach(agent, PodState.READY)


async def test_a_warm_up_that_takes_too_long_is_told(disk: FailingDisk) -> None:
    async with running(disk, PlayedTriton(on_generate=lambda: TritonSlow("no answer in 60 s"))) as agent:
        failure = (await reach(agent, PodState.FAILED)).failure
    assert failure is not None and failure.retryable
    assert failure.reason == "WarmUpFailed" and "60 s" in failure.message and "memory" not in failure.message


async def test_a_load_that_takes_too_long_is_told_apart_from_an_end_for_memory(disk: FailingDisk) -> None:
    async with running(disk, PlayedTriton(on_load=lambda: TritonSlow("no answer in 300 s"))) as agent:
        failure = (await reach(agent, PodState.FAILED)).failure
    assert failure is not None and failure.retryable
    assert failure.reason == "EngineLoadFailed" and "300 s" in failure.message and "memory" not in failure.message


async def test_a_triton_that_ends_in_each_warm_up_is_told(disk: FailingDisk) -> None:
    triton = PlayedTriton(on_generate=lambda: TritonGone("/generate: ServerDisconnectedError()"))
    async with running(disk, triton) as agent:
        failure = (await reach(agent, PodState.FAILED)).failure
    assert failure is not None and failure.reason == "WarmUpFailed" and "memory" in failure.message
    assert triton.loads == LOST_WHILE_LOADING


async def test_one_end_in_a_warm_up_is_outlived(disk: FailingDisk) -> None:
    ends = [TritonGone("once")]
    async with running(disk, PlayedTriton(on_generate=lambda: ends.pop() if ends else None)) as agent:
        await reach(agent, PodState.READY)


@pytest.mark.parametrize("served", [True, False])
@pytest.mark.parametrize("changes", [{}, {"generation": 2}, {"generation": 2, "serving": make_serving(stop="line")}])
async def test_an_assignment_that_comes_while_a_new_agent_asks_triton_is_taken(
    disk: FailingDisk, monkeypatch: pytest.MonkeyPatch, served: bool, changes: dict[str, Any]
) -> None:
    """The operator speaks each second, so also in the moment in which a restarted agent looks what Triton has."""
    disk.remember(Remembered(assignment=make_assignment(), files=REQUEST.files))
    request = REQUEST.model_copy(update={"assignment": make_assignment(**changes)})
    asked, answer = asyncio.Event(), asyncio.Event()

    async def is_served(_: Loader, assignment: PodAssignment) -> bool:
        asked.set()
        await answer.wait()
        return served and assignment == make_assignment()

    monkeypatch.setattr(Loader, "is_served", is_served)
    triton = PlayedTriton()
    async with running(disk, triton) as agent:
        await asked.wait()
        await agent.take(request)
        answer.set()
        report = await reach(agent, PodState.READY, request)
    assert report.generation == make_assignment(**changes).generation
    assert triton.loads == (0 if served and "serving" not in changes else 1)
    remembered = disk.recall()
    assert remembered is not None and remembered.assignment == request.assignment


async def test_a_silent_triton_is_slow_and_an_absent_one_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_client, "LOAD", ClientTimeout(total=0.05))
    answering = asyncio.Event()

    async def hang(request: web.Request) -> web.Response:
        await answering.wait()
        return web.Response()

    app = web.Application()
    app.router.add_post("/{path:.*}", hang)
    runner = web.AppRunner(app)
    await runner.setup()
    address = f"127.0.0.1:{free_port()}"
    await web.TCPSite(runner, *address.split(":")).start()  # type: ignore[arg-type]
    async with triton_client.make_session() as session:
        client = TritonClient(session, http=address, metrics=address, key="")
        with pytest.raises(TritonSlow):
            await client.load()
        answering.set()
        await runner.cleanup()
        with pytest.raises(TritonGone):
            await client.load()
