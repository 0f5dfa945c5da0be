"""A run spread over processes: each sends every K-th request of one schedule, and their samples are put together.

A Python process keeps one core, and one that draws a progress bar is late for its own requests. So the command line
always sends from child processes and draws in the parent. All children start at one instant of the monotonic clock,
which is the same for every process of a machine. Parent and child talk through a pipe in tuples: the parent says
("start", instant) and ("stop",), the child ("ready",), ("progress", Progress), ("done", LoadResult), ("fault", text).
"""

import asyncio
import gc
import multiprocessing
import os
import resource
import time
import traceback
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from hotstart.loadtest.arrivals import constant_arrivals
from hotstart.loadtest.drive import ProgressCallback, run_load
from hotstart.loadtest.interrupts import interrupts_held
from hotstart.loadtest.null_server import NullProtocol
from hotstart.loadtest.plan import LoadPlan, shard_plan
from hotstart.loadtest.result import LoadResult
from hotstart.loadtest.sample import Progress, merge_progress
from hotstart.loadtest.send import make_requests

# The children need this long from hearing the start instant to being asleep before it.
_HEAD_START_S = 0.05
_END_S = 10.0
_WARM_UP_ARRIVALS = constant_arrivals(rate=500, duration=0.1)


class FleetError(Exception):
    """A sending process failed; the message holds its traceback, since that is a fault of this program."""


@dataclass
class _Child:
    process: BaseProcess
    pipe: Connection
    ready: asyncio.Future[None]
    result: asyncio.Future[LoadResult]
    latest: Progress


async def run_in_processes(
    plan: LoadPlan,
    processes: int,
    *,
    progress: ProgressCallback | None = None,
    stop: asyncio.Event | None = None,
    realtime: bool = True,
) -> LoadResult:
    """Send `plan` from `processes` children and return the merged result; otherwise like `drive.run_load`.

    realtime: let the children run ahead of ordinary processes where the system allows it (see `ask_for_realtime`), and
        as long as they leave a core to the others.
    The children are spawned: a script that calls this keeps its own work under `if __name__ == "__main__":`.
    Raises ValueError when processes is not positive, FleetError when a child fails. No child outlives the call.
    """
    shares = shard_plan(plan, processes)
    realtime = realtime and len(shares) < (os.cpu_count() or 1)  # else they could starve a server on this machine
    stop = stop or asyncio.Event()
    children: list[_Child] = []
    try:
        for share in shares:
            children.append(_start_child(share, realtime))
        results = await _conduct(children, stop, progress)
    finally:
        _end_children(children)
    return merge_results(plan, results)


def merge_results(plan: LoadPlan, results: list[LoadResult]) -> LoadResult:
    """Return one result of `plan` out of those of its shares: all samples together, ordered by intended time."""
    samples = sorted((sample for result in results for sample in result.samples), key=lambda sample: sample.intended)
    return LoadResult(
        plan,
        tuple(samples),
        started_at=min(result.started_at for result in results),
        ran_s=max(result.ran_s for result in results),
        processes=len(results),
        interrupted=any(result.interrupted for result in results),
        realtime=all(result.realtime for result in results),
        stolen=max((result.stolen for result in results if result.stolen is not None), default=None),
    )


async def _conduct(children: list[_Child], stop: asyncio.Event, progress: ProgressCallback | None) -> list[LoadResult]:
    loop = asyncio.get_running_loop()
    for child in children:
        loop.add_reader(child.pipe.fileno(), _hear_child, child)
    await asyncio.gather(*(child.ready for child in children))
    start_at = time.monotonic() + _HEAD_START_S
    for child in children:
        child.pipe.send(("start", start_at))
    stopper = asyncio.create_task(_pass_stop_on(children, stop))
    drawer = asyncio.create_task(_draw(children, progress)) if progress else None
    try:
        results = await asyncio.gather(*(child.result for child in children))
    finally:
        stopper.cancel()
        if drawer is not None:
            drawer.cancel()
    if progress:
        progress(merge_progress([child.latest for child in children]))
    return list(results)


async def _pass_stop_on(children: list[_Child], stop: asyncio.Event) -> None:
    await stop.wait()
    for child in children:
        if not child.result.done():
            child.pipe.send(("stop",))


async def _draw(children: list[_Child], progress: ProgressCallback) -> None:
    while True:
        await asyncio.sleep(0.2)
        progress(merge_progress([child.latest for child in children]))


def _start_child(share: LoadPlan, realtime: bool) -> _Child:
    loop = asyncio.get_running_loop()
    # "spawn", because a fork would copy the parent's event loop, threads and signal handlers.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=run_child, args=(share, theirs, realtime), daemon=True)
    with interrupts_held():
        process.start()
    theirs.close()
    nothing_yet = Progress(len(share.arrivals), 0, 0, 0, 0, 0)
    return _Child(process, ours, loop.create_future(), loop.create_future(), nothing_yet)


def _hear_child(child: _Child) -> None:
    try:
        message = child.pipe.recv()
    except (EOFError, ConnectionResetError):
        asyncio.get_running_loop().remove_reader(child.pipe.fileno())
        _fail(child, "a sending process ended before its result")
        return
    match message:
        case ("ready",):
            child.ready.set_result(None)
        case ("progress", Progress() as latest):
            child.latest = latest
        case ("done", LoadResult() as result):
            child.result.set_result(result)
        case ("fault", str(text)):
            _fail(child, text)
        case _:
            _fail(child, f"a sending process said {message!r}")


def _fail(child: _Child, text: str) -> None:
    for future in (child.ready, child.result):
        if not future.done():
            future.set_exception(FleetError(text))


def _end_children(children: list[_Child]) -> None:
    loop = asyncio.get_running_loop()
    for child in children:
        loop.remove_reader(child.pipe.fileno())
        child.pipe.close()
        for future in (child.ready, child.result):
            if future.done() and not future.cancelled():
                future.exception()  # one child's failure is told; those of the others are its echo
    for child in children:
        if child.result.done():
            child.process.join(_END_S)
        child.process.terminate()
        child.process.join(_END_S)
        child.process.close()


def run_child(share: LoadPlan, pipe: Connection, realtime: bool) -> None:
    """Entry of a sending process: wait for the start, send, answer with the result."""
    _raise_file_limit()
    try:
        asyncio.run(_drive_share(share, pipe, realtime))
    except BrokenPipeError:  # the parent is gone: there is nobody to tell, and nothing was asked that is not done
        return
    except Exception:  # noqa: BLE001 - whatever it is, the parent has to hear of it
        pipe.send(("fault", traceback.format_exc()))


async def _drive_share(share: LoadPlan, pipe: Connection, realtime: bool) -> None:
    stop = asyncio.Event()
    start: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def hear_parent() -> None:
        try:
            message = pipe.recv()
        except (EOFError, ConnectionResetError):  # the parent is gone, and with it the reason to go on
            message = ("stop",)
            asyncio.get_running_loop().remove_reader(pipe.fileno())
            if not start.done():
                start.set_exception(BrokenPipeError())
        if message[0] == "start":
            start.set_result(message[1])
        else:
            stop.set()

    await _warm_up(share)
    requests = make_requests(share)  # before the start is set: those of a long trace take seconds
    gc.collect()
    gc.freeze()  # what stands now is never garbage, so that collections stay short
    asyncio.get_running_loop().add_reader(pipe.fileno(), hear_parent)
    pipe.send(("ready",))
    start_at = await start
    granted = realtime and ask_for_realtime()

    def tell(latest: Progress) -> None:
        pipe.send(("progress", latest))

    result = await run_load(share, progress=tell, stop=stop, start_at=start_at, requests=requests)
    pipe.send(("done", replace(result, realtime=granted)))


async def _warm_up(share: LoadPlan) -> None:
    """Send some requests to a server inside this process: the first ones take milliseconds of imports and caches."""
    server = await asyncio.get_running_loop().create_server(NullProtocol, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        await run_load(replace(share, url=f"http://127.0.0.1:{port}", arrivals=_WARM_UP_ARRIVALS))


def ask_for_realtime() -> bool:
    """Put this process ahead of ordinary ones at the lowest real-time priority; return whether the system let us.

    On a machine that also runs the server, an ordinary process wakes milliseconds late whenever the server keeps the
    cores busy; a real-time one wakes within tenths of one (bare sleeps on two loaded cores: p99 of 0.2 instead of
    10 ms). It needs root or CAP_SYS_NICE; the kernel keeps 5 % of the time for all others (sched(7)).
    """
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(os.sched_get_priority_min(os.SCHED_RR)))
    except (OSError, AttributeError):  # not allowed, or not a system that knows it
        return False
    return True


def _raise_file_limit() -> None:
    """Allow as many open files, that is connections, as the system lets this process have."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
