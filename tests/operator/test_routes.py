"""What routers are told: each has its share of what a pod may hold."""

from __future__ import annotations

import pytest
from hotstart.exchange.messages import RouterReport, RouterRequest
from hotstart.operator.core.recipe import POD_QUEUE
from hotstart.operator.core.routes import share_of
from hotstart.operator.reconcile.routing import RouterPod, make_router_pod
from hotstart.router.routes import RouteTable, decide_table, make_table
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


async def test_a_leader_whose_clock_is_behind_gives_its_routes_to_the_routers_too(world: World) -> None:
    table = RouteTable()

    async def ask_router(address: str, uid: str, request: RouterRequest) -> RouterReport:
        nonlocal table
        table = decide_table(table, make_table(request))
        return RouterReport(pod_uid=uid, generation=table.generation, cursor=request.cursor)

    world.agents.ask_router = ask_router
    world.clock.seconds += 25  # as far as the exchange allows
    world.apply()
    await world.run_until(lambda: world.pods() and world.pods()[0].get("status", {}).get("phase") == "Running")
    assert not any(route.endpoints for route in table.routes.values())
    world.clock.seconds -= 25
    world.restart()
    await world.run_until(world.is_ready)
    await world.run(5)
    [route] = table.routes.values()
    assert [endpoint.pod for endpoint in route.endpoints] == [world.pods()[0]["metadata"]["name"]]


async def test_a_model_that_cannot_be_read_any_longer_keeps_its_route_to_the_pods_that_stand(world: World) -> None:
    world.apply(replicas=2)
    await world.run_until(lambda: [len(route.endpoints) for route in world.agents.routes] == [2])
    [before] = world.agents.routes
    world.cluster.change("CompletionModel", "m", {"spec": {"slo": {"latency": "no time"}}})
    await world.run(5)
    assert world.conditions()["Ready"]["reason"] == "InvalidSpec"
    assert world.agents.routes == (before,)
    gone, stays = before.endpoints
    world.cluster.drop("Pod", gone.pod)
    await world.run_until(lambda: world.agents.routes[0].endpoints == (stays,))


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
