"""Leadership over time: epochs that only rise, and never two leaders, however the API server fails."""

from __future__ import annotations

import asyncio
import copy

import pytest
from hotstart.operator.adapters.lease import DURATION_SECONDS, EPOCH_BEGAN, GIVE_UP_SECONDS, LeaseHolder, LeaseLost
from hotstart.operator.core.errors import Conflict, Retryable

from tests.operator.virtual_time import run_in_virtual_time

NOW = 1_800_000_000.0


class ApiServer:
    """One Lease, with optimistic concurrency."""

    def __init__(self) -> None:
        self.lease: dict | None = None
        self.version = 0

    def write(self, body: dict) -> None:
        self.version += 1
        self.lease = copy.deepcopy(body)
        self.lease["metadata"]["resourceVersion"] = str(self.version)

    def annotate(self) -> None:
        assert self.lease is not None
        self.write(self.lease | {"metadata": self.lease["metadata"] | {"annotations": {"seen": str(self.version)}}})


class Connection:
    """One replica's way to the server. From these times on its requests fail at once, and then hang."""

    def __init__(self, server: ApiServer, *, fails_from: float = 1e9, hangs_from: float = 1e9) -> None:
        self.server, self.fails_from, self.hangs_from = server, fails_from, hangs_from
        self.before_replace = lambda: None

    async def _pass(self) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self.hangs_from:
            await asyncio.sleep(3600)
        if now >= self.fails_from:
            raise Retryable("no answer")

    async def get(self, kind, namespace, name):
        await self._pass()
        return copy.deepcopy(self.server.lease)

    async def create(self, body):
        await self._pass()
        if self.server.lease is not None:
            raise Conflict("stands already")
        self.server.write(body)

    async def replace(self, body):
        await self._pass()
        self.before_replace()
        if self.server.lease is None or body["metadata"]["resourceVersion"] != str(self.server.version):
            raise Conflict("changed meanwhile")
        self.server.write(body)


def holder(server: ApiServer, name: str, now: float = NOW, **trouble: float) -> LeaseHolder:
    return LeaseHolder(Connection(server, **trouble), "system", name, clock=lambda: now)


@pytest.mark.parametrize("loss", ["deleted", "released", "expired"])
def test_each_taking_has_a_higher_epoch_than_any_before(loss: str) -> None:
    async def play() -> None:
        server = ApiServer()
        first, second = holder(server, "one", NOW), holder(server, "two", NOW + 60)
        before = await first.acquire()
        if loss == "deleted":
            server.lease = None
        elif loss == "released":
            await first.release()
        assert await second.acquire() > before

    run_in_virtual_time(play())


def test_an_epoch_rises_where_the_next_leaders_clock_is_behind() -> None:
    async def play() -> None:
        server = ApiServer()
        before = await holder(server, "one", NOW).acquire()
        assert await holder(server, "two", NOW - 3600).acquire() == before + 1

    run_in_virtual_time(play())


def test_an_epoch_fits_the_field_until_2091() -> None:
    assert 3_818_000_000 - EPOCH_BEGAN < 2**31, "December 2090"


@pytest.mark.parametrize("hangs_after", [0.0, 1.9, 2.0, 3.9, 4.0, 5.9, 6.0, 6.9])
def test_a_leader_whose_requests_fail_and_then_hang_stops_before_another_leads(hangs_after: float) -> None:
    """Its failures begin after a renewal at 20 s; the other replica looks at every moment it can."""

    async def play() -> None:
        server = ApiServer()
        first = holder(server, "one", fails_from=20.5, hangs_from=20.5 + hangs_after)
        second = holder(server, "two")
        await first.acquire()
        waiting = asyncio.create_task(second.acquire())
        with pytest.raises(LeaseLost):
            await first.keep()
        assert not waiting.done()
        assert asyncio.get_running_loop().time() <= 20 + GIVE_UP_SECONDS
        await waiting
        assert asyncio.get_running_loop().time() >= 20 + DURATION_SECONDS

    run_in_virtual_time(play())


def test_what_comes_between_taking_and_keeping_counts() -> None:
    async def play() -> None:
        first = holder(ApiServer(), "one", fails_from=1.0)
        await first.acquire()
        await asyncio.sleep(GIVE_UP_SECONDS - 1)
        with pytest.raises(LeaseLost):
            await first.keep()
        assert asyncio.get_running_loop().time() <= GIVE_UP_SECONDS

    run_in_virtual_time(play())


def test_somebody_who_annotates_the_lease_ends_no_leader() -> None:
    async def play() -> None:
        server = ApiServer()
        leader = holder(server, "one")
        await leader.acquire()
        annotations = iter([server.annotate])
        leader.cluster.before_replace = lambda: next(annotations, lambda: None)()
        keeping = asyncio.create_task(leader.keep())
        await asyncio.sleep(60)
        assert not keeping.done()
        assert "annotations" in server.lease["metadata"]
        server.lease["spec"]["holderIdentity"] = "two"
        with pytest.raises(LeaseLost, match="another replica"):
            await keeping

    run_in_virtual_time(play())
