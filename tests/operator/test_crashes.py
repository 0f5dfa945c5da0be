"""When a pod has failed, how often a revision may, and what another process of the operator makes of it."""

from __future__ import annotations

import pytest
from hotstart.exchange.messages import PodFailure, PodState

from tests.operator.world import World

LOAD = PodFailure(reason="EngineLoadFailed", message="out of memory. It needs 9 GB", retryable=False)
FETCH = PodFailure(reason="EngineFetchFailed", message="the store answers 503", retryable=True)


@pytest.fixture
def world() -> World:
    return World()


def say(world: World, uid: str, state: PodState, *, fetched: int = 0, failure: PodFailure | None = None) -> None:
    world.agents.said[uid] = {"state": state, "failure": failure, "bytes_done": fetched}


async def start_second(world: World) -> str:
    """A model with one ready replica and a second one that fetches; the UID of the second."""
    world.apply()
    await world.run_until(world.is_ready)
    world.apply(replicas=2)
    await world.run_until(lambda: len(world.pods()) == 2)
    uid = max((pod for pod in world.pods()), key=lambda pod: int(pod["metadata"]["uid"].removeprefix("uid-")))
    say(world, uid["metadata"]["uid"], PodState.FETCHING)
    return uid["metadata"]["uid"]


def stands(world: World, uid: str) -> bool:
    return uid in {pod["metadata"]["uid"] for pod in world.pods()}


async def test_a_failure_that_may_pass_counts_from_when_it_was_said_and_not_from_the_pod_s_creation(world):
    uid = await start_second(world)
    await world.run(70)
    say(world, uid, PodState.FAILED, failure=FETCH, fetched=5)
    await world.run(1)
    assert stands(world, uid), "one 503 in a long download"
    say(world, uid, PodState.FETCHING, failure=FETCH, fetched=9)
    await world.run(70)
    say(world, uid, PodState.FAILED, failure=FETCH, fetched=9)
    await world.run(2)
    assert stands(world, uid), "another one, and it had got further in between"
    world.agents.said.clear()
    await world.run_until(world.is_ready)
    assert world.conditions()["Degraded"]["status"] == "False"


async def test_an_agent_that_tries_again_in_vain_for_a_minute_has_failed(world):
    uid = await start_second(world)
    for _ in range(6):
        say(world, uid, PodState.FAILED, failure=FETCH)
        await world.run(5)
        assert stands(world, uid)
        say(world, uid, PodState.FETCHING, failure=FETCH)
        await world.run(4)
    assert world.conditions()["WorkloadReady"]["reason"] == "EngineFetchFailed"
    say(world, uid, PodState.FAILED, failure=FETCH)
    await world.run_until(lambda: not stands(world, uid), 15)


def made(world: World) -> int:
    return sum(write.startswith("create Pod/") for write in world.cluster.writes)


async def test_a_stopped_revision_stays_stopped_for_another_process(world):
    world.apply()
    await world.run_until(world.is_ready)
    world.agents.failures["*"] = LOAD
    world.apply(serving={"maxNewTokens": 7})
    await world.run_until(lambda: world.conditions()["Degraded"]["status"] == "True", 90)
    stopped = world.conditions()["Degraded"]["message"]
    assert "after 3 crashes" in stopped and LOAD.message in stopped
    count = made(world)
    for _ in range(3):
        world.restart()
        await world.run(20)
        assert (made(world), world.conditions()["Degraded"]["message"]) == (count, stopped)
    await world.run_until(lambda: made(world) == count + 1, 320)
    await world.run(20)
    world.restart()
    await world.run(20)
    assert made(world) == count + 1, "the five minutes are from the last try"
    world.agents.failures.clear()
    await world.run_until(lambda: world.is_ready() and world.conditions()["Degraded"]["status"] == "False", 320)


async def test_restarts_before_an_operator_s_time_are_no_crashes_that_it_saw(world):
    world.apply()
    await world.run_until(world.is_ready)
    (pod,) = world.pods()
    say(world, pod["metadata"]["uid"], PodState.RELOADING)
    restart_containers(world, pod, 5)
    world.restart()
    await world.operator.step()
    assert world.conditions()["Degraded"]["status"] == "False"
    restart_containers(world, pod, 8)
    await world.operator.step()
    assert world.conditions()["Degraded"]["reason"] == "RevisionStopped"


def restart_containers(world: World, pod: dict, count: int) -> None:
    """The kubelet's count of restarts in a pod that is not ready meanwhile."""
    statuses = [{"name": "triton", "restartCount": count, "state": {"running": {}}}]
    ready = {"type": "Ready", "status": "False", "lastTransitionTime": pod["metadata"]["creationTimestamp"]}
    status = {"containerStatuses": statuses, "conditions": [ready]}
    world.cluster.change("Pod", pod["metadata"]["name"], {"status": status})
