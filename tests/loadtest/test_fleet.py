"""Several sending processes as one run, and the measure of what they can do."""

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from hotstart.loadtest import fleet
from hotstart.loadtest.calibrate import calibrate, decide_held, decide_next_rate
from hotstart.loadtest.drive import run_load
from hotstart.loadtest.fleet import FleetError, run_in_processes
from hotstart.loadtest.null_server import serve_nothing
from hotstart.loadtest.plan import LoadPlan, make_constant_plan
from hotstart.loadtest.sample import Progress
from hotstart.loadtest.send import make_requests

from .conftest import MODEL, FakeServer


async def test_the_merged_result_holds_every_sample_in_order(server: FakeServer) -> None:
    told: list[Progress] = []
    plan = replace(make_constant_plan(server.url, MODEL, rate=100, duration=0.3), drift_limit_s=60)
    result = await run_in_processes(plan, 2, progress=told.append)
    assert result.processes == 2
    assert [sample.intended for sample in result.samples] == [arrival.offset for arrival in plan.arrivals]
    assert result.summary.ok == 30
    assert (told[-1].planned, told[-1].done) == (30, 30)
    assert multiprocessing.active_children() == []


async def test_a_stop_before_the_start_sends_next_to_nothing(server: FakeServer) -> None:
    stop = asyncio.Event()
    stop.set()
    result = await run_in_processes(make_constant_plan(server.url, MODEL, rate=20, duration=3600), 2, stop=stop)
    assert result.interrupted
    assert result.summary.requests < 100


async def test_a_child_that_dies_ends_the_run_with_an_error(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_constant_plan(server.url, MODEL, rate=20, duration=3600)
    run = asyncio.create_task(run_in_processes(plan, 2))
    await asyncio.wait_for(server.received.wait(), 60)
    multiprocessing.active_children()[0].kill()
    with pytest.raises(FleetError, match="ended before its result"):
        await asyncio.wait_for(run, 60)
    assert multiprocessing.active_children() == []


async def test_a_fault_in_a_child_comes_back_with_its_traceback(server: FakeServer) -> None:
    plan = make_constant_plan(server.url, MODEL, rate=20, duration=1)
    broken = replace(plan, arrivals=tuple(replace(arrival, prompt=10_000) for arrival in plan.arrivals))
    with pytest.raises(FleetError, match="IndexError"):
        await run_in_processes(broken, 1)


async def test_a_sender_is_ready_only_when_its_requests_are_made(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = multiprocessing.Pipe()
    ready_before: list[bool] = []

    def make_others(plan: LoadPlan) -> list[bytes]:
        ready_before.append(ours.poll())
        return make_requests(replace(plan, model="made/ahead"))

    monkeypatch.setattr(fleet, "make_requests", make_others)
    monkeypatch.setattr("gc.freeze", lambda: ready_before.append(ours.poll()))
    ours.send(("start", time.monotonic()))
    with ours, theirs:
        await fleet._drive_share(make_constant_plan(server.url, MODEL, rate=50, duration=0.1), theirs, False)
        assert ours.recv() == ("ready",)
    assert ready_before == [False, False]
    assert [body["model"] for body in server.bodies] == ["made/ahead"] * 5  # and are not made again


async def test_ctrl_c_reaches_no_sender_from_its_first_instant_on(server: FakeServer) -> None:
    plan = replace(make_constant_plan(server.url, MODEL, rate=100, duration=0.1), drift_limit_s=60)
    run = asyncio.create_task(run_in_processes(plan, 2))
    await asyncio.sleep(0)  # they are started
    interrupt_children(2)
    result = await run
    assert (result.summary.ok, result.interrupted) == (10, False)


async def test_ctrl_c_does_not_reach_the_server_of_a_calibration() -> None:
    async with serve_nothing() as url:
        interrupt_children(1)
        assert (await run_load(make_constant_plan(url, "null", rate=50, duration=0.1))).summary.ok == 5


def interrupt_children(count: int) -> None:
    children = multiprocessing.active_children()
    assert len(children) == count
    for child in children:
        assert child.pid is not None
        os.kill(child.pid, signal.SIGINT)


async def test_real_time_priority_is_used_only_when_asked_for_and_never_on_all_cores(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    plan = make_constant_plan(server.url, MODEL, rate=100, duration=0.1)
    assert (await run_in_processes(plan, 1, realtime=False)).realtime is False
    assert (await run_in_processes(plan, 2, realtime=True)).realtime is False


def test_real_time_priority_is_reported_as_the_system_has_it() -> None:
    code = (
        "import os, sys; from hotstart.loadtest.fleet import ask_for_realtime\n"
        "sys.exit(ask_for_realtime() != (os.sched_getscheduler(0) == os.SCHED_RR))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_priority_that_is_not_allowed_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    assert fleet.ask_for_realtime() is False


def test_the_search_for_the_highest_rate_doubles_and_then_halves() -> None:
    assert decide_next_rate(100, None) == 200
    assert decide_next_rate(100, 200) == 150
    assert decide_next_rate(0, 100) == 50


async def test_calibration_tells_the_highest_rate_that_held() -> None:
    """With a limit that nothing can hold the answer is 0, by the same search that finds any other."""
    found = await calibrate(drift_limit_s=1e-9, step_s=0.4, attempts=1)
    assert found.max_rate == 0
    assert [round(run.summary.rate) for run in found.runs] == [100, 50, 25, 12]
    figures = found.to_json()
    assert figures["max_rate"] == 0
    assert all(run["failed"] == 0 for run in figures["runs"])


def test_nothing_of_kubernetes_is_imported() -> None:
    code = (
        "import pkgutil, sys, importlib, hotstart.loadtest as p\n"
        "[importlib.import_module('hotstart.loadtest.' + m.name) for m in pkgutil.iter_modules(p.__path__)]\n"
        "bad = {'kopf', 'kubernetes', 'boto3', 'tritonclient', 'numpy', 'hotstart.operator'} & set(sys.modules)\n"
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [([], None), ([True], None), ([True, True], True), ([False], None), ([False, False], False), ([False, True], None)],
)
def test_a_rate_holds_by_most_of_three_runs(verdicts, said):
    assert decide_held(verdicts, 3) is said


def test_one_run_decides_where_one_is_asked_for():
    assert decide_held([True], 1) is True
    assert decide_held([False], 1) is False
