"""Traffic changes spec.replicas: from the routers' statistics to the write through /scale, its event and status."""

from __future__ import annotations

import pytest
from hotstart.exchange.messages import ModelSecond
from hotstart.operator.core.errors import Forbidden, Retryable

from tests.operator.doubles import NAMESPACE
from tests.operator.world import World

TRAFFIC_SECONDS = 8
UP_TO_TWO = {"mode": "SLO", "maxReplicas": 2, "scaleDownStabilization": "10s"}


@pytest.fixture
def world() -> World:
    return World()


def play_traffic(world: World, *, busy: float, seconds: int = TRAFFIC_SECONDS) -> None:
    """What the router has counted by the end of so many seconds from now: ``busy`` requests at pods all the while."""
    begun = int(world.clock.now())
    world.agents.seconds += [
        ModelSecond(second=begun + i, model=f"{NAMESPACE}/m", arrivals=4, completed=4, within_slo=4, in_flight_sum=busy)
        for i in range(seconds)
    ]


def scale_writes(world: World) -> list[str]:
    return [write for write in world.cluster.writes if write.startswith("scale ")]


def decisions(world: World) -> list[dict]:
    return world.model()["status"].get("decisions", [])


async def serve(world: World, **scaling) -> None:
    world.apply(scaling={**UP_TO_TWO, **scaling})
    await world.run_until(world.is_ready)


async def test_traffic_scales_to_two_and_its_end_back_to_one(world):
    await serve(world)
    assert scale_writes(world) == []

    play_traffic(world, busy=2.0)
    await world.run_until(lambda: world.model()["status"].get("readyReplicas") == 2)
    assert scale_writes(world) == ["scale m 2"]
    assert len(world.pods()) == 2
    (note,) = (note for note in world.events.notes if note.reason == "DemandRose")
    assert not note.warning
    assert note.message.startswith("Scaled from 1 to 2: 1.0 requests in work or waiting"), "in the first busy second"
    (up,) = decisions(world)
    assert (up["from"], up["to"], up["reason"]) == (1, 2, "DemandRose")
    assert up["inputs"]["burst"] == "1.00 requests"

    await world.run_until(lambda: len(world.pods()) == 1, 120)
    await world.run(30)
    assert scale_writes(world) == ["scale m 2", "scale m 1"]
    assert world.model()["spec"]["replicas"] == 1
    assert [(d["from"], d["to"], d["reason"]) for d in decisions(world)] == [(2, 1, "DemandFell"), (1, 2, "DemandRose")]
    assert world.is_ready()


async def test_the_second_replica_stays_while_the_traffic_does(world):
    await serve(world)
    play_traffic(world, busy=2.0, seconds=100)
    await world.run(100)
    assert scale_writes(world) == ["scale m 2"]


async def test_a_write_that_fails_is_made_in_the_next_turn(world):
    await serve(world)
    play_traffic(world, busy=2.0)
    original, failures = world.cluster.set_scale, [Retryable("no answer")]

    async def fail_once(*arguments):
        if failures:
            raise failures.pop()
        await original(*arguments)

    world.cluster.set_scale = fail_once
    await world.run_until(lambda: scale_writes(world) == ["scale m 2"])
    assert failures == []
    (up,) = decisions(world)
    assert (up["from"], up["to"]) == (1, 2)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Forbidden('admission webhook "limits" denied the request: at most 1'), "AdmissionDenied"),
        (Retryable("failed calling webhook"), "PodCreateFailed"),
    ],
)
async def test_a_number_that_the_api_server_refuses_is_told(world, error, reason):
    await serve(world)
    original = world.cluster.set_scale

    async def refuse(*_):
        raise error

    world.cluster.set_scale = refuse
    play_traffic(world, busy=2.0, seconds=30)
    await world.run_until(lambda: world.conditions()["ScalingActive"]["reason"] == reason)
    said = f"The API server does not take 2 replicas: {error}"
    scaling = world.conditions()["ScalingActive"]
    assert (scaling["status"], scaling["message"]) == ("False", said)
    assert (world.model()["spec"]["replicas"], decisions(world)) == (1, [])
    assert {(note.warning, note.message) for note in world.events.notes if note.reason == reason} == {(True, said)}
    world.cluster.set_scale = original
    await world.run_until(lambda: world.conditions()["ScalingActive"]["status"] == "True")
    assert scale_writes(world) == ["scale m 2"]


async def test_an_override_that_the_api_server_refuses_has_not_ended(world):
    await serve(world)

    async def refuse(*_):
        raise Forbidden("at most 1")

    world.cluster.set_scale = refuse
    override = {"replicas": 2, "until": "2037-01-01T00:00:00Z", "reason": "launch"}
    world.apply(scaling={**UP_TO_TWO, "override": override})
    await world.run(3)
    assert world.conditions()["ScalingActive"]["reason"] == "AdmissionDenied"
    assert not [note for note in world.events.notes if note.reason == "OverrideEnded"]


@pytest.mark.parametrize("change", [{"management": "Paused"}, {"scaling": {"mode": "External"}}])
async def test_where_hotstart_is_not_to_write_traffic_writes_nothing(world, change):
    await serve(world)
    world.apply(**{**change, "scaling": {**UP_TO_TWO, **change.get("scaling", {})}})
    play_traffic(world, busy=2.0, seconds=20)
    await world.run(20)
    assert scale_writes(world) == []
    assert world.model()["spec"]["replicas"] == 1


async def test_advice_of_mode_external_stands_in_status(world):
    await serve(world, mode="External")
    play_traffic(world, busy=2.0, seconds=20)
    await world.run_until(lambda: bool(decisions(world)))
    assert [(d["from"], d["to"]) for d in decisions(world)] == [(1, 2)]
    assert scale_writes(world) == []


async def test_a_new_leader_holds_what_the_old_one_decided(world):
    await serve(world)
    play_traffic(world, busy=2.0)
    await world.run_until(lambda: world.model()["status"].get("readyReplicas") == 2)
    world.agents.seconds.clear()
    world.restart()
    await world.run(5)
    assert scale_writes(world) == ["scale m 2"], "the new one waits a whole stabilisation before it takes any away"
    assert [(d["from"], d["to"]) for d in decisions(world)] == [(1, 2)]
