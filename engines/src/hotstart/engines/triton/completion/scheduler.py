"""The queue in front of the engine, and the workers behind it.

A prefill cannot be interrupted, so nothing waits inside the engine: a job is handed to it only when a worker is free.
What is cancelled while it waits is dropped at once and never runs; what is cancelled while it runs ends at its next
token. Threads, not asyncio: the engine calls back on a thread of its own, and Triton's sender may be used from any.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from hotstart.engines.triton.completion.errors import Overloaded

log = logging.getLogger(__name__)
FRESH_SECONDS = 0.005  # asking costs a message to Triton; of a job that came just now it is not asked
RUNNING_POLL_SECONDS = 0.005  # how often it is asked whether clients of running jobs are gone
ASKED_AT_ONCE = 8  # of them, those that were not asked for longest: messages must not take the time of tokens
WAITING_POLLS = 10  # a waiting job's client is asked every so many of these


class Job(Protocol):
    """One request, as the scheduler sees it. ``run`` and ``drop`` answer it; exactly one of them is called, once."""

    @property
    def id(self) -> str: ...
    def run(self, cancelled: Callable[[], bool]) -> None: ...
    def drop(self) -> None:
        """It was cancelled before it ran."""

    def abandoned(self) -> bool:
        """Whether its client is gone."""


@dataclass(eq=False)
class _Entry:
    job: Job
    cancelled: threading.Event = field(default_factory=threading.Event)
    came: float = field(default_factory=time.monotonic)
    asked: int = 0  # the poll at which it was asked last


@dataclass(frozen=True)
class Load:
    """How many jobs run and wait now."""

    running: int
    waiting: int


class Scheduler:
    """``workers`` threads that run jobs in the order they came; at most ``limit`` jobs wait."""

    def __init__(self, workers: int, limit: int) -> None:
        self._limit = limit
        self._workers = workers
        self._changed = threading.Condition()
        self._waiting: deque[_Entry] = deque()
        self._running: set[_Entry] = set()
        self._closed = False
        names = [f"worker-{number}" for number in range(workers)]
        self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for name in names]
        self._threads.append(threading.Thread(target=self._watch, name="watch", daemon=True))
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> None:
        """Takes ``job``: it will be run, or dropped.

        Raises:
            Overloaded: no worker is free and the queue is full, or the model is being unloaded.
        """
        with self._changed:
            if self._closed:
                raise Overloaded("the model is being unloaded; ask another replica")
            if len(self._waiting) >= self._limit + max(0, self._workers - len(self._running)):
                raise Overloaded(f"{len(self._waiting)} requests are waiting already; retry, or add replicas")
            self._waiting.append(_Entry(job))
            self._changed.notify_all()

    def cancel(self, job_id: str) -> int:
        """Cancels all jobs with that id; how many there were. One that waited is dropped before this returns."""
        with self._changed:
            found = [entry for entry in (*self._waiting, *self._running) if entry.job.id == job_id]
            for entry in found:
                entry.cancelled.set()
        self._drop_cancelled()
        return len(found)

    def load(self) -> Load:
        """How many jobs run and wait now."""
        with self._changed:
            return Load(len(self._running), len(self._waiting))

    def close(self) -> None:
        """Takes no more jobs, runs those it has, and ends its threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _drop_cancelled(self) -> None:
        with self._changed:
            dropped = [entry for entry in self._waiting if entry.cancelled.is_set()]
            for entry in dropped:
                self._waiting.remove(entry)
        for entry in dropped:
            self._answer(entry.job.drop, entry)

    def _work(self) -> None:
        while (entry := self._next()) is not None:
            if time.monotonic() - entry.came > FRESH_SECONDS and entry.job.abandoned():
                entry.cancelled.set()
            if entry.cancelled.is_set():
                self._answer(entry.job.drop, entry)
            else:
                self._answer(lambda entry=entry: entry.job.run(entry.cancelled.is_set), entry)  # type: ignore[misc]
            with self._changed:
                self._running.discard(entry)
                self._changed.notify_all()

    def _next(self) -> _Entry | None:
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return None
                self._changed.wait()
            entry = self._waiting.popleft()
            self._running.add(entry)
            return entry

    def _answer(self, answer: Callable[[], None], entry: _Entry) -> None:
        try:
            answer()
        except Exception:  # a worker must outlive any job; the job itself answers its client
            log.exception("job failed id=%s", entry.job.id)

    def _watch(self) -> None:
        """Asks running jobs, and now and then waiting ones, whether their clients are gone."""
        polls = 0
        while True:
            with self._changed:
                while not self._running and not self._waiting:
                    if self._closed:
                        return
                    self._changed.wait()
            time.sleep(RUNNING_POLL_SECONDS)
            with self._changed:
                polls += 1
                running = sorted(self._running, key=lambda entry: entry.asked)[:ASKED_AT_ONCE]
                asked = [*running, *(self._waiting if polls % WAITING_POLLS == 0 else ())]
            for entry in asked:
                entry.asked = polls
                if not entry.cancelled.is_set() and entry.job.abandoned():
                    entry.cancelled.set()
            self._drop_cancelled()
