"""Every write fails in turn, the process dies between any two writes: the same state is reached all the same."""

from __future__ import annotations

import json

import pytest
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


async def play(world: World) -> None:
    """A model's life: made, changed, scaled down."""
    world.apply(replicas=2)
    await world.run(10)
    world.apply(replicas=2, serving={"maxNewTokens": 7})
    await world.run(10)
    world.apply(replicas=1, serving={"maxNewTokens": 7})
    await world.run(12)


async def rehearse() -> tuple[str, int]:
    world = World()
    await play(world)
    assert world.is_ready()
    return picture(world), world.cluster.attempts


@pytest.fixture(scope="module")
def rehearsal() -> tuple[str, int]:
    import asyncio

    return asyncio.run(rehearse())


ERRORS = (Retryable("no answer"), Conflict("changed"), Forbidden("exceeded quota"))


async def test_each_write_failing_in_turn_converges(rehearsal):
    wanted, writes = rehearsal
    assert writes > 20
    for number in range(1, writes + 1):
        world = World()
        world.cluster.fail_at = {number: ERRORS[number % len(ERRORS)]}
        await play(world)
        assert picture(world) == wanted, f"write {number} failed"


async def test_a_process_that_dies_at_any_write_is_followed_by_one_that_converges(rehearsal):
    wanted, writes = rehearsal
    for number in range(1, writes + 1):
        world = World()
        world.cluster.fail_at = {number: Died()}
        await play_through_death(world)
        assert picture(world) == wanted, f"died at write {number}"


async def play_through_death(world: World) -> None:
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


async def test_a_process_restarted_every_second_converges(rehearsal):
    wanted, _ = rehearsal
    world = World()
    original = world.run

    async def run(seconds: int) -> None:
        for _ in range(seconds):
            world.restart()
            await original(1)

    world.run = run
    await play(world)
    await original(10)
    assert picture(world) == wanted
