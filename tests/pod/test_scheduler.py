"""The queue in front of the engine, with jobs that say when they end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from hotstart.engines.triton.completion.errors import Overloaded
from hotstart.engines.triton.completion.scheduler import ASKED_AT_ONCE, Load, Scheduler

BACKSTOP = 20.0


class StepJob:
    """Runs until it is let go or cancelled."""

    def __init__(self, name: str) -> None:
        self.id = name
        self.started = threading.Event()
        self.release = threading.Event()
        self.ended = threading.Event()
        self.left = False
        self.fate = ""

    def run(self, cancelled: Callable[[], bool]) -> None:
        self.started.set()
        while not cancelled() and not self.release.wait(0.001):
            continue
        self.fate = "cancelled while running" if cancelled() else "ran"
        self.ended.set()

    def drop(self) -> None:
        self.fate = "dropped"
        self.ended.set()

    def abandoned(self) -> bool:
        return self.left


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    made = Scheduler(workers=2, limit=3)
    yield made
    made.close()


def submit(scheduler: Scheduler, *names: str) -> list[StepJob]:
    jobs = [StepJob(name) for name in names]
    for job in jobs:
        scheduler.submit(job)
    return jobs


def settle(*jobs: StepJob) -> list[str]:
    for job in jobs:
        job.release.set()
    for job in jobs:
        assert job.ended.wait(BACKSTOP), job.id
    return [job.fate for job in jobs]


def test_as_many_run_as_there_are_workers(scheduler: Scheduler) -> None:
    first, second, third = submit(scheduler, "a", "b", "c")
    assert first.started.wait(BACKSTOP)
    assert second.started.wait(BACKSTOP)
    assert scheduler.load() == Load(running=2, waiting=1)
    assert not third.started.is_set()
    assert settle(first, second, third) == ["ran"] * 3


def test_a_full_queue_refuses(scheduler: Scheduler) -> None:
    running = submit(scheduler, "a", "b")
    for job in running:
        assert job.started.wait(BACKSTOP)
    waiting = submit(scheduler, "c", "d", "e")
    with pytest.raises(Overloaded, match=r"^overloaded: 3 requests"):
        scheduler.submit(StepJob("f"))
    assert settle(*running, *waiting) == ["ran"] * 5


def test_a_cancelled_running_job_ends_and_frees_its_worker(scheduler: Scheduler) -> None:
    first, second, third = submit(scheduler, "a", "b", "c")
    assert first.started.wait(BACKSTOP)
    assert scheduler.cancel("a") == 1
    assert third.started.wait(BACKSTOP), "the worker is free"
    assert first.fate == "cancelled while running"
    assert settle(second, third) == ["ran", "ran"]


def test_a_job_cancelled_in_the_queue_is_dropped_at_once_and_never_runs(scheduler: Scheduler) -> None:
    first, second, third = submit(scheduler, "a", "b", "c")
    assert first.started.wait(BACKSTOP)
    assert second.started.wait(BACKSTOP)
    scheduler.cancel("c")
    assert third.fate == "dropped", "dropped before cancel returns"
    assert settle(first, second) == ["ran", "ran"]
    assert not third.started.is_set()


def test_a_job_whose_client_left_is_dropped_or_ended(scheduler: Scheduler) -> None:
    first, second, third = submit(scheduler, "a", "b", "c")
    assert first.started.wait(BACKSTOP)
    third.left = first.left = True
    assert first.ended.wait(BACKSTOP)
    assert third.ended.wait(BACKSTOP)
    assert (first.fate, third.fate) == ("cancelled while running", "dropped")
    assert settle(second) == ["ran"]


def test_an_unknown_id_cancels_nothing(scheduler: Scheduler) -> None:
    assert scheduler.cancel("nobody") == 0


def test_a_worker_outlives_a_job_that_raises(scheduler: Scheduler) -> None:
    class Broken(StepJob):
        def run(self, cancelled: Callable[[], bool]) -> None:
            self.ended.set()
            raise RuntimeError("broken job")

    broken = [Broken(str(number)) for number in range(3)]
    for job in broken:
        scheduler.submit(job)
        assert job.ended.wait(BACKSTOP)
    assert settle(*submit(scheduler, "a", "b")) == ["ran", "ran"]


def test_closing_runs_what_was_taken_and_takes_no_more() -> None:
    scheduler = Scheduler(workers=1, limit=4)
    jobs = submit(scheduler, "a", "b")
    for job in jobs:
        job.release.set()
    scheduler.close()
    assert [job.fate for job in jobs] == ["ran", "ran"]
    with pytest.raises(Overloaded, match="unloaded"):
        scheduler.submit(StepJob("c"))


def test_every_client_that_leaves_is_noticed_however_many_run() -> None:
    scheduler = Scheduler(workers=5 * ASKED_AT_ONCE, limit=0)
    jobs = submit(scheduler, *(str(number) for number in range(5 * ASKED_AT_ONCE)))
    for job in jobs:
        assert job.started.wait(BACKSTOP)
    for job in jobs[::3]:
        job.left = True
    for job in jobs[::3]:
        assert job.ended.wait(BACKSTOP), job.id
    settle(*jobs)
    assert [job.fate for job in jobs[:3]] == ["cancelled while running", "ran", "ran"]
    scheduler.close()
