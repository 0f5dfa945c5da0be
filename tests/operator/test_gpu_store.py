"""A store that denies writes: nothing half-done is ever visible, it is said, and it goes on once it is mended."""

from __future__ import annotations

import pytest

from tests.operator.world import World


@pytest.fixture
def world() -> World:
    return World()


def manifests(world) -> list[str]:
    return [key for key in world.store.objects if key.endswith("manifest.json")]


@pytest.mark.parametrize("write", ["create_upload", "complete_upload", "put_manifest"])
async def test_a_store_that_denies_a_write(world, write):
    world.store.denied = {write}
    world.apply()
    for _ in range(25):
        await world.run(1)
        assert manifests(world) == [] and world.pods() == []
    found = world.conditions()["EngineReady"]
    assert (found["status"], found["reason"]) == ("False", "AccessDenied")
    assert write in found["message"] and "the Secret's rights" in found["message"]
    assert [str(note.reason) for note in world.events.notes if note.warning].count("AccessDenied") >= 1
    assert len(world.jobs("build")) == 1, "what was built is not built again"
    world.store.denied = set()
    await world.run_until(world.is_ready)
    assert len(manifests(world)) == 1
    assert sum(made.startswith("create Job/build-") for made in world.cluster.writes) == 1


@pytest.mark.parametrize("write", ["create_upload", "complete_upload", "put_manifest"])
async def test_an_operator_that_dies_meanwhile_changes_nothing(world, write):
    world.store.denied = {write}
    world.apply()
    await world.run(15)
    world.restart()
    await world.run(5)
    assert manifests(world) == [] and world.pods() == []
    assert world.conditions()["EngineReady"]["reason"] == "AccessDenied"
    world.store.denied = set()
    await world.run_until(world.is_ready)


async def test_a_second_run_writes_nothing_while_the_store_denies(world):
    world.store.denied = {"put_manifest"}
    world.apply()
    await world.run(40)
    before = list(world.cluster.writes)
    await world.run(20)
    assert world.cluster.writes[len(before) :] == []
