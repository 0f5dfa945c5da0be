"""The leader's turns and lists: what fails for one model, router or namespace holds up no other."""

from __future__ import annotations

import asyncio
import math
from types import SimpleNamespace

import pytest
from hotstart.operator.app.leader import ROUTER_LIST_SECONDS, Leader, run_until_first
from hotstart.operator.app.process import find_standing
from hotstart.operator.core.errors import Forbidden, Retryable, Terminal
from hotstart.operator.reconcile.observed import Key, Observed
from hotstart.operator.reconcile.routing import RouterPod

from tests.operator.doubles import NAMESPACE
from tests.operator.virtual_time import run_in_virtual_time
from tests.operator.world import World

HOME = "hotstart-system"
ROUTER = RouterPod("uid-of-router", "10.9.0.1:9700")


async def serve(*names: str) -> World:
    """A world in which these models serve, with a router's pod in the operator's namespace."""
    world = World()
    for name in names:
        world.apply(name, checkpoint={"uri": f"s3://models/{name}/"})
    await world.run_until(lambda: all(world.is_ready(name) for name in names))
    made = world.cluster.create_now(
        "Pod",
        {
            "metadata": {
                "name": "router-1",
                "namespace": HOME,
                "labels": {"app.kubernetes.io/component": "router"},
            },
            "status": {"phase": "Running", "podIP": "10.9.0.1"},
        },
    )
    made["metadata"]["uid"] = world.cluster.objects[("Pod", HOME, "router-1")]["metadata"]["uid"] = ROUTER.uid
    return world


def make_leader(world: World, *namespaces: str) -> Leader:
    operator, settings = world.operator, SimpleNamespace(namespace=HOME, watch_namespaces=namespaces)
    queue = SimpleNamespace(add=operator.queue.add, depth=0)
    return Leader(
        settings, world.cluster, operator.observed, queue, operator.exchange, operator.scaler, None, None, None
    )


async def throttled(*_: object, **__: object) -> None:
    raise Retryable("429: too many requests.")


async def test_an_agent_whose_message_raises_keeps_no_other_from_being_heard(caplog: pytest.LogCaptureFixture) -> None:
    world = await serve("m", "other")
    (bad,), (good,) = world.pods("m"), world.pods("other")
    ask = world.agents.ask_pod

    async def ask_pod(address, uid, request):
        if uid == bad["metadata"]["uid"]:
            raise KeyError("nobody foresaw this")
        return await ask(address, uid, request)

    world.agents.ask_pod, world.agents.routes = ask_pod, None
    world.agents.pod_requests.clear()
    await world.operator.exchange.turn()
    assert [uid for uid, _ in world.agents.pod_requests] == [good["metadata"]["uid"]]
    assert world.agents.routes is not None, "the routers have heard"
    assert "nobody foresaw this" in caplog.text


async def test_a_store_that_raises_what_nobody_foresaw_keeps_no_router_from_its_routes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = await serve("m")

    async def get_manifest(prefix: str) -> str:
        raise KeyError("nobody foresaw this")

    world.store.get_manifest, world.agents.routes = get_manifest, None
    world.restart()
    world.agents.states.clear()  # the pod's agent wants the engine's files again
    await make_leader(world)._first_turn()
    assert world.agents.routes is not None
    assert "nobody foresaw this" in caplog.text


async def test_a_first_turn_that_raises_does_not_end_the_leader(caplog: pytest.LogCaptureFixture) -> None:
    world = await serve("m")
    leader = make_leader(world)
    leader.scaler = SimpleNamespace()
    await leader._first_turn()
    assert "first turn raised" in caplog.text


async def test_no_turn_is_made_before_the_routers_are_known() -> None:
    world = await serve("m")
    leader = make_leader(world)
    world.cluster.list, world.agents.routes = throttled, None
    with pytest.raises(Retryable):
        await leader._turn()
    assert world.agents.routes is None


def test_routers_that_cannot_be_listed_are_asked_as_before(caplog: pytest.LogCaptureFixture) -> None:
    async def play() -> None:
        world = await serve("m")
        leader, original, tries = make_leader(world), world.cluster.list, []
        await leader._turn()

        async def fail_twice(kind, **selectors):
            tries.append(kind)
            if len(tries) < 3:
                raise (Retryable("429: too many requests."), KeyError("nobody foresaw this"))[len(tries) - 1]
            return await original(kind, **selectors)

        async def look() -> None:
            await asyncio.sleep(2.5 * ROUTER_LIST_SECONDS)
            world.agents.routes = None
            await leader._turn()
            assert leader.exchange.routing.routers == (ROUTER,)
            assert world.agents.routes is not None
            world.cluster.drop("Pod", "router-1", HOME)
            await asyncio.sleep(ROUTER_LIST_SECONDS)
            await leader._turn()
            assert leader.exchange.routing.routers == ()

        world.cluster.list = fail_twice
        await run_until_first(leader._list_routers_for_ever(), look())

    run_in_virtual_time(play())
    assert "routers not listed" in caplog.text and "nobody foresaw this" in caplog.text


async def test_a_namespace_that_may_not_be_listed_holds_up_no_other() -> None:
    world = await serve("m")
    leader = make_leader(world, "gone", NAMESPACE)

    async def list_at_version(kind, *, namespace="", labels=""):
        if namespace == "gone":
            raise Forbidden(f'{kind} may not be listed in the namespace "gone"')
        return await world.cluster.list(kind, namespace=namespace, labels=labels), math.inf

    world.cluster.list_at_version, leader.observed = list_at_version, Observed()
    world.operator.queue.keys.clear()
    with pytest.raises(Forbidden, match="gone"):
        await leader.resync()
    assert len(leader.observed.all("Pod", NAMESPACE)) >= 1
    assert Key("CompletionModel", NAMESPACE, "m") in world.operator.queue.keys


async def test_watched_namespaces_that_are_gone_or_going_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.cluster.create_now("Namespace", {"metadata": {"name": "going", "deletionTimestamp": "2030-01-01T00:00:00Z"}})
    assert await find_standing(world.cluster, ("gone", NAMESPACE, "going")) == (NAMESPACE,)
    assert "left out" in caplog.text and "name=gone" in caplog.text and "name=going" in caplog.text
    assert await find_standing(world.cluster, ()) == (), "all"
    with pytest.raises(Terminal, match=r"None of operator\.watchNamespaces stands"):
        await find_standing(world.cluster, ("gone",))  # and not the empty list, which would be all
