"""The router's state: routing table and lanes; applies what the operator says, reports what was seen.

Sits between the exchange (routes in, statistics out) and the server (requests).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from hotstart.exchange.messages import ModelRoute, RouterReport, RouterRequest
from hotstart.router.lane import Lane
from hotstart.router.routes import RouteTable, decide_table, diff_routes, make_table
from hotstart.router.state_file import save_routes
from hotstart.router.statistics import page_end

log = logging.getLogger(__name__)

MAX_REPORTED_SECONDS = 10_000  # records in one report, about 3 MB


class Router:
    """One a process. ``state`` is the file of the last routes, None to keep them in memory only."""

    def __init__(self, *, pod_uid: str, state: Path | None = None, wall: Callable[[], float] = time.time) -> None:
        self.table = RouteTable()
        self.lanes: dict[str, Lane] = {}
        self.draining = False
        self._pod_uid = pod_uid
        self._state = state
        self._wall = wall
        self._removed: set[Lane] = set()
        self.turns = 0  # requests that clients wait for
        self._idle: asyncio.Event = asyncio.Event()
        self._idle.set()

    def begin_turn(self) -> None:
        self.turns += 1
        self._idle.clear()

    def end_turn(self) -> None:
        self.turns -= 1
        if not self.turns:
            self._idle.set()

    async def idle(self) -> None:
        """Returns when no client waits."""
        await self._idle.wait()

    @property
    def ready(self) -> bool:
        """Whether it may get requests: it knows routes and is not on its way out."""
        return self.table.known and not self.draining

    def route(self, model: str) -> ModelRoute | None:
        return self.table.routes.get(model)

    def apply(self, said: RouteTable, *, save: bool = True) -> None:
        """Takes a table, unless it is older than the one held; all of it or nothing, between two requests."""
        wanted = decide_table(self.table, said)
        if wanted is self.table:
            if said.generation != self.table.generation:
                log.warning("older routes ignored said=%d held=%d", said.generation, self.table.generation)
            return
        change = diff_routes(self.table, wanted)
        new = not self.table.known
        self.table = wanted
        self._removed = {lane for lane in self._removed if lane.busy}
        for name in change.removed:
            lane = self.lanes.pop(name)
            lane.remove()
            self._removed.add(lane)
        for route in change.put:
            if route.model in self.lanes:
                self.lanes[route.model].apply(route)
            else:
                self.lanes[route.model] = Lane(route, self._wall)
        if not change.empty or new:
            log.info(
                "routes applied generation=%d put=%d removed=%d",
                wanted.generation,
                len(change.put),
                len(change.removed),
            )
            if save:
                self._save()

    async def answer(self, request: RouterRequest) -> RouterReport:
        """One exchange with the operator."""
        self.apply(make_table(request))
        return self.report(request.cursor)

    def report(self, cursor: int) -> RouterReport:
        """What was seen in the full seconds after ``cursor``; one in the future comes from before the clock was put."""
        now = self._wall()
        until = page_end(cursor, now, len(self.lanes), MAX_REPORTED_SECONDS)
        seconds = []
        for lane in self.lanes.values():
            lane.book.advance(now)
            seconds.extend(lane.book.read(cursor, until))
        seconds.sort(key=lambda record: record.second)
        return RouterReport(
            pod_uid=self._pod_uid,
            generation=self.table.generation,
            cursor=until,
            seconds=tuple(seconds),
        )

    async def close(self) -> None:
        """Ends all connections to pods."""
        await asyncio.gather(*(lane.close() for lane in (*self.lanes.values(), *self._removed)))

    def _save(self) -> None:
        if self._state is None:
            return
        try:
            save_routes(self._state, self.table)
        except OSError as error:
            log.warning("routes not saved, a restart waits for the operator path=%s error=%s", self._state, error)
