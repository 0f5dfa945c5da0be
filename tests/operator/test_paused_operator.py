"""The whole operator Paused: as if every model were; status goes on."""

from __future__ import annotations

import json
from functools import partial

import pytest
from hotstart.operator.core.errors import BadSettings
from hotstart.operator.reconcile.observed import Observed
from hotstart.operator.settings import read_management

from tests.operator import world as world_module
from tests.operator.world import World


@pytest.fixture
async def world() -> World:
    """One model that is served."""
    world = World()
    world.apply()
    await world.run_until(world.is_ready)
    return world


def restart(world: World, monkeypatch: pytest.MonkeyPatch, *, paused: bool) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(world_module, "Observed", partial(Observed, paused))
        world.restart()
    world.cluster.writes.clear()


async def test_it_writes_nothing_but_status_and_goes_on_where_it_was(world: World, monkeypatch) -> None:
    restart(world, monkeypatch, paused=True)
    world.apply(replicas=2, serving={"maxNewTokens": 7})
    world.apply("another", checkpoint={"uri": "s3://models/another/"})
    await world.run(30)
    assert {write.split()[0] for write in world.cluster.writes} == {"status"}
    assert world.conditions()["Progressing"]["reason"] == "Paused"
    assert world.conditions("another")["Progressing"]["reason"] == "Paused"
    endpoints = {route.model: len(route.endpoints) for route in world.agents.routes}
    assert endpoints == {"team/another": 0, "team/m": 1}, "the exchange goes on"
    assert "Paused" not in json.dumps(world.model()["spec"]), "the spec stays the user's"
    restart(world, monkeypatch, paused=False)
    await world.run_until(lambda: world.is_ready() and world.is_ready("another") and len(world.pods()) == 2)


def test_a_word_that_is_neither_is_refused() -> None:
    with pytest.raises(BadSettings, match="HOTSTART_MANAGEMENT is 'paused': it must be one of Managed, Paused"):
        read_management("paused")
