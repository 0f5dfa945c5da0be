"""Every write fails in turn, the process dies between any two writes: the same state is reached all the same."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest
from hotstart.exchange.messages import ModelSecond
from hotstart.operator.core.errors import Conflict, Forbidden, Retryable
from hotstart.operator.core.names import ANNOTATION_DECIDED_AT

from tests.operator.doubles import Died
from tests.operator.world import World

VOLATILE = ("resourceVersion", "uid", "creationTimestamp", "generation")


def picture(world: World) -> str:
    """What stands at the end, without versions, UIDs and times."""
    shown = []
    for (kind, _, name), obj in sorted(world.cluster.objects.items()):
        if kind in ("Job",) or (kind == "Pod" and "-x1" in name):
            continue
        meta = {k: v for k, v in obj["metadata"].items() if k not in VOLATILE and k != "ownerReferences"}
        meta.get("annotations", {}).pop(ANNOTATION_DECIDED_AT, None)
        meta.get("annotations", {}).pop("hotstart.dev/requested-by", None)
        if kind == "Pod":
            meta["name"] = name.rpartition("-")[0]  # without the attempt
            meta["annotations"].pop("hotstart.dev/attempt", None)
        status = obj.get("status", {})
        conditions = {c["type"]: (c["status"], c["reason"]) for c in status.get("conditions", ()) if "reason" in c}
        shown.append((kind, meta, obj.get("spec") if kind != "Pod" else None, conditions, status.get("readyReplicas")))
    return json.dumps(shown, sort_keys=True, indent=1)


@dataclass(frozen=True)
class Rehearsal:
    """How a play ends when nothing fails, and after how many writes."""

    play: Callable[[World], Awaitable[None]]
    picture: str
    writes: int


async def play(world: World) -> None:
    """A model's life: made, changed, scaled down."""
    world.apply(replicas=2)
    await world.run(10)
    world.apply(replicas=2, serving={"maxNewTokens": 7})
    await world.run(10)
    world.apply(replicas=1, serving={"maxNewTokens": 7})
    await world.run(12)


async def play_traffic(world: World) -> None:
    """A model in mode SLO: a burst brings a second replica, its end takes one away."""
    world.apply(scaling={"mode": "SLO", "minReplicas": 1, "maxReplicas": 2, "scaleDownStabilization": "3s"})
    await world.run(10)
    begun = int(world.clock.now())
    world.agents.seconds += [ModelSecond(second=begun + i, model="team/m", in_flight_sum=3.0) for i in range(6)]
    await world.run(10)
    assert any(write.startswith("scale m 2") for write in world.cluster.writes)
    await world.run(16)
    assert world.model()["spec"]["replicas"] == 1


PLAYS = (play, play_traffic)


@pytest.fixture(scope="module", params=PLAYS, ids=lambda each: each.__name__)
def rehearsal(request) -> Rehearsal:
    world = World()
    asyncio.run(request.param(world))
    assert world.is_ready()
    return Rehearsal(request.param, picture(world), world.cluster.attempts)


ERRORS = (Retryable("no answer"), Conflict("changed"), Forbidden("exceeded quota"))


async def test_each_write_failing_in_turn_converges(rehearsal):
    assert rehearsal.writes > 20
    for number in range(1, rehearsal.writes + 1):
        world = World()
        world.cluster.fail_at = {number: ERRORS[number % len(ERRORS)]}
        await rehearsal.play(world)
        assert picture(world) == rehearsal.picture, f"write {number} failed"


async def test_a_process_that_dies_at_any_write_is_followed_by_one_that_converges(rehearsal):
    for number in range(1, rehearsal.writes + 1):
        world = World()
        world.cluster.fail_at = {number: Died()}
        await play_through_death(world, rehearsal.play)
        assert picture(world) == rehearsal.picture, f"died at write {number}"


async def test_a_process_that_dies_between_the_manifest_and_status_is_followed_by_one_that_finds_the_engine():
    calm = World()
    await play(calm)
    world = World()
    world.store.died_after = {"put_manifest"}
    await play_through_death(world, play)
    assert not world.store.died_after, "it died"
    assert picture(world) == picture(calm)
    assert sum(write.startswith("create Job/build-") for write in world.cluster.writes) == 1


async def test_a_process_that_dies_between_the_marker_and_status_is_followed_by_one_that_builds_nothing():
    world = World()
    world.build_exit = {"failure": {"reason": "VerificationFailed", "message": "Tokens differ.", "retryable": False}}
    world.store.died_after = {"put_quarantine"}
    await play_through_death(world, play)
    assert not world.store.died_after, "it died"
    assert world.conditions()["EngineReady"]["reason"] == "EngineQuarantined"
    assert sum(write.startswith("create Job/build-") for write in world.cluster.writes) == 1
    (marker,) = [text for key, text in world.store.objects.items() if key.endswith("/quarantine.json")]
    assert json.loads(marker)["number"] == 1


async def play_through_death(world: World, play: Callable[[World], Awaitable[None]]) -> None:
    original = world.run

    async def run(seconds: int) -> None:
        for _ in range(seconds):
            try:
                await original(1)
            except Died:
                world.restart()
                world.clock.seconds += 1

    world.run = run
    await play(world)
    await original(5)


async def test_a_process_restarted_every_second_converges():
    calm = World()
    await play(calm)
    world = World()
    original = world.run

    async def run(seconds: int) -> None:
        for _ in range(seconds):
            world.restart()
            await original(1)

    world.run = run
    await play(world)
    await original(10)
    assert picture(world) == picture(calm)
