"""What routers are told: each has its share of what a pod may hold."""

from __future__ import annotations

import pytest
from hotstart.operator.core.recipe import POD_QUEUE
from hotstart.operator.core.routes import share_of
from hotstart.operator.reconcile.routing import RouterPod, make_router_pod
from hypothesis import given
from hypothesis import strategies as st

from tests.operator.world import World


@pytest.mark.parametrize(
    ("cap", "routers", "share"), [(1, 1, 1), (1, 2, 1), (4, 2, 2), (5, 2, 3), (64, 3, 22), (8, 0, 8)]
)
def test_the_share_of_one_router(cap: int, routers: int, share: int) -> None:
    assert share_of(cap, routers) == share


@given(st.integers(1, 1000), st.integers(1, 20))
def test_the_shares_fill_a_pod_and_leave_less_than_one_a_router_to_its_queue(cap: int, routers: int) -> None:
    together = share_of(cap, routers) * routers
    assert cap <= together < cap + routers


@pytest.fixture
def world() -> World:
    return World()


def caps(world: World) -> set[int]:
    return {endpoint.cap for route in world.agents.routes for endpoint in route.endpoints}


async def test_a_second_router_halves_the_caps(world: World) -> None:
    world.apply(scaling={"concurrencyPerReplica": 6})
    await world.run_until(world.is_ready)
    assert caps(world) == {6}
    assert world.operator is not None
    routing = world.operator.exchange.routing
    routing.routers = (*routing.routers, RouterPod("router-2", "10.0.0.2:9700"))
    await world.run_until(lambda: caps(world) == {3})


async def test_a_pod_is_not_sent_more_than_it_lets_wait(world: World) -> None:
    world.apply(scaling={"concurrencyPerReplica": 50}, engine={"limits": {"batchSize": 64}})
    await world.run_until(world.is_ready)
    workers = 1
    assert caps(world) == {workers + POD_QUEUE}


@pytest.mark.parametrize(
    ("status", "metadata", "stands"),
    [
        ({"phase": "Running", "podIP": "10.0.0.2"}, {}, True),
        ({"phase": "Running", "podIP": "10.0.0.2"}, {"deletionTimestamp": "2026-11-29T00:00:00Z"}, True),  # it drains
        ({"phase": "Pending", "podIP": "10.0.0.2"}, {}, False),
        ({"phase": "Running"}, {}, False),
        ({"phase": "Succeeded", "podIP": "10.0.0.2"}, {"deletionTimestamp": "2026-11-29T00:00:00Z"}, False),
    ],
)
def test_a_router_stands_from_its_address_to_its_end(
    status: dict[str, str], metadata: dict[str, str], stands: bool
) -> None:
    router = make_router_pod({"metadata": {"uid": "u", **metadata}, "status": status})
    assert router == (RouterPod("u", "10.0.0.2:9700") if stands else None)
