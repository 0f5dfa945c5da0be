"""The queue between events and reconciliation: keyed, deduplicating, serial per key, with back-off.

An event only adds a key. A key that is added while its reconcile runs is run once more afterwards. A reconcile that
raises comes again after back-off; one that succeeds may ask to be looked at again in some seconds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from hotstart.operator.core.backoff import RECONCILE
from hotstart.operator.core.errors import Conflict, HotstartError
from hotstart.operator.reconcile.observed import Key

log = logging.getLogger(__name__)

Work = Callable[[Key], Awaitable[float | None]]


class WorkQueue:
    """One a process. ``work`` reconciles a key and returns the seconds until it wants another look, or None."""

    def __init__(self, work: Work, *, workers: int = 8, on_error: Callable[[Key], None] = lambda key: None) -> None:
        self._work = work
        self._workers = workers
        self._on_error = on_error
        self._ready: asyncio.Queue[Key] = asyncio.Queue()
        self._waiting: set[Key] = set()  # in the queue
        self._running: set[Key] = set()
        self._again: set[Key] = set()  # added while running
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}

    @property
    def depth(self) -> int:
        """Keys that wait for a worker."""
        return len(self._waiting)

    def add(self, key: Key) -> None:
        """The key is to be reconciled soon."""
        if key in self._running:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._ready.put_nowait(key)

    def add_in(self, key: Key, seconds: float) -> None:
        """The key is to be reconciled in so many seconds, or when an earlier timer of it says."""
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        timer = self._timers.get(key)
        if timer is not None and not timer.cancelled() and loop.time() < timer.when() <= due:
            return
        if timer is not None:
            timer.cancel()
        self._timers[key] = loop.call_at(due, self._ring, key)

    def _ring(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.add(key)

    async def run(self) -> None:
        """Works until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._workers):
                group.create_task(self._serve())

    async def _serve(self) -> None:
        while True:
            key = await self._ready.get()
            self._waiting.discard(key)
            if key in self._running:  # held
                self._again.add(key)
                continue
            self._running.add(key)
            try:
                await self._run_one(key)
            finally:
                self._release(key)

    @asynccontextmanager
    async def hold(self, key: Key) -> AsyncIterator[bool]:
        """Keeps the key's reconcile waiting while the block runs; False, and no hold, where it runs just now."""
        if key in self._running:
            yield False
            return
        self._running.add(key)
        try:
            yield True
        finally:
            self._release(key)

    def _release(self, key: Key) -> None:
        self._running.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    async def _run_one(self, key: Key) -> None:
        try:
            check_in = await self._work(key)
        except Conflict as conflict:
            log.info("object changed meanwhile, gathering again key=%s cause=%s", key, conflict)
            self._retry(key)
        except HotstartError as error:
            log.warning("reconcile failed key=%s error=%s", key, error)
            self._retry(key)
        except Exception:
            log.exception("reconcile raised key=%s", key)
            self._on_error(key)
            self._retry(key)
        else:
            self._failures.pop(key, None)
            if check_in is not None:
                self.add_in(key, check_in)

    def _retry(self, key: Key) -> None:
        failures = self._failures.get(key, 0) + 1
        self._failures[key] = failures
        self.add_in(key, RECONCILE.delay(failures))
