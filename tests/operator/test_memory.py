"""What the operator remembers goes with what it is about."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hotstart.exchange.client import ExchangeFailed
from hotstart.exchange.messages import BuildPhase, PodRequest
from hotstart.operator.adapters import agents as adapter
from hotstart.operator.adapters.agents import ExchangeAgents

from tests.operator.world import World


@pytest.fixture
def world() -> World:
    return World()


def remembered(world: World) -> dict[str, object]:
    """All that grows with what is watched."""
    operator = world.operator
    memory, exchange = operator.memory, operator.exchange
    return {
        "models": memory.models,
        "reports": memory.reports,
        "builds": memory.builds,
        "upload failures": memory.upload_failures,
        "published": memory.published,
        "routers": memory.routers,
        "routes changed": exchange.routing._book.changed_in,
        "routes left": exchange.routing._book.left_in,
        "manifests": exchange._manifests,
        "files": exchange._files,
        "background": exchange._background,
        "requests": exchange.builds._requests,
        "engines looked for": operator.engines._checked,
    }


async def test_nothing_is_remembered_of_models_that_are_gone(world):
    world.apply()
    world.apply("other", serving={"maxNewTokens": 7})
    await world.run_until(lambda: world.is_ready() and world.is_ready("other"))
    assert any(remembered(world).values())
    for name in ("m", "other"):
        world.cluster.drop("CompletionModel", name)
    for engine in world.cluster.all("Engine"):
        world.cluster.drop("Engine", engine["metadata"]["name"])
    await world.run(310)
    assert {what: kept for what, kept in remembered(world).items() if kept} == {}


async def test_nothing_of_a_build_is_remembered_once_its_engine_stands(world):
    world.store.denied = {"complete_upload"}
    world.apply()
    await world.run(10)
    assert world.operator.memory.builds and world.operator.memory.upload_failures
    world.store.denied = set()
    await world.run_until(world.is_ready)
    await world.run(2)
    memory = world.operator.memory
    assert (memory.upload_failures, memory.published) == ({}, set())


async def test_crashes_are_remembered_of_pods_that_stand(world):
    world.apply()
    await world.run_until(world.is_ready)
    for _ in range(5):
        world.cluster.drop("Pod", world.pods()[0]["metadata"]["name"])
        await world.run_until(lambda: bool(world.pods()) and world.is_ready())
    (record,) = world.operator.memory.of("team", "m", world.model()["metadata"]["uid"]).crashes.values()
    assert set(record.seen) == {pod["metadata"]["uid"] for pod in world.pods()}


async def test_a_report_of_an_attempt_before_is_not_shown_for_the_next_one(world):
    ask = world.agents.ask_builder

    async def building(address, uid, request):
        report = await ask(address, uid, request)
        return report and report.model_copy(update={"phase": BuildPhase.BUILDING, "percent": 77, "manifest": ""})

    world.agents.ask_builder = building
    world.apply()
    await world.run_until(lambda: bool(world.cluster.all("Engine")) and world.jobs("build") != [])
    await world.run(3)
    assert world.cluster.all("Engine")[0]["status"]["percent"] == 77
    world.agents.mute = {"builder"}
    world.build_exit = {"failure": {"reason": "StoreUnreachable", "message": "No answer.", "retryable": True}}
    await world.run(2)
    world.build_exit = None
    await world.run_until(lambda: len(world.jobs("build")) == 2, 60)
    await world.run(3)
    assert world.cluster.all("Engine")[0]["status"].get("percent") is None


async def test_an_agent_s_silence_is_said_once_in_a_while_and_not_remembered_for_ever(monkeypatch, caplog):
    class Nobody:
        async def ask(self, address, uid, request, report):
            raise ExchangeFailed("no route")

    caplog.set_level("INFO")
    clock = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(adapter, "time", SimpleNamespace(monotonic=lambda: clock.seconds))
    asks = ExchangeAgents(Nobody())
    for uid in ("a", "a", "b"):
        assert await asks.ask_pod("10.0.0.1:9700", uid, PodRequest()) is None
    assert caplog.text.count("agent does not answer") == 2
    clock.seconds = adapter.SAY_AGAIN_SECONDS
    await asks.ask_pod("10.0.0.1:9700", "c", PodRequest())
    assert set(asks._silent) == {"c"}
