"""What status and scaling make of traffic as it comes and goes, second by second; all of it in memory."""

from __future__ import annotations

import pytest
from hotstart.exchange.messages import ModelSecond
from hotstart.operator.api import CompletionModel, Reason
from hotstart.operator.core.routes import make_route
from hotstart.operator.core.scale import Fleet, ScaleState, decide_scale
from hotstart.operator.core.window import Window, add_seconds
from hotstart.operator.reconcile import scaling
from hotstart.operator.reconcile.routing import RouterPod

from tests.operator.doubles import SPEC, merge, stamp
from tests.operator.test_scale import NOW, traffic
from tests.operator.world import World

SLO = {"mode": "SLO", "minReplicas": 1, "maxReplicas": 9}


@pytest.fixture
def world() -> World:
    return World()


async def drive(world: World, seconds: int, **second) -> None:
    """So many seconds of a load: the arguments of `traffic`."""
    for _ in range(seconds):
        world.agents.seconds.append(traffic(int(world.clock.now()) - 1, **second))
        await world.run(1)


async def test_the_verdict_on_the_slo_follows_the_traffic(world):
    world.apply(slo={"latency": "250ms"}, scaling=SLO)
    await world.run_until(world.is_ready)
    await drive(world, 5, busy=0.5, ms=100)
    assert world.conditions()["SLOMet"]["reason"] == "WithinSLO"
    await drive(world, 30, busy=0.5, ms=900)
    assert world.conditions()["SLOMet"]["reason"] == "AboveSLO"
    await drive(world, 70, busy=0.5, ms=100)
    assert world.conditions()["SLOMet"]["reason"] == "WithinSLO"
    await world.run(65)
    assert world.conditions()["SLOMet"]["reason"] == "NoTraffic"


async def test_the_percentile_in_status_is_no_older_than_half_a_minute(world):
    world.apply(slo={"latency": "2s"}, scaling=SLO)
    await world.run_until(world.is_ready)
    await drive(world, 40, busy=0.5, ms=100)
    await drive(world, 60 + 31, busy=0.5, ms=900)
    assert world.model()["status"]["latency"]["value"] == "940ms"
    writes = world.cluster.writes.count("status CompletionModel/m")
    await drive(world, 90, busy=0.5, ms=900)
    assert world.cluster.writes.count("status CompletionModel/m") == writes, "nothing else to say"


async def test_a_model_whose_scaling_raises_holds_no_other_one_up(world, monkeypatch, caplog):
    world.apply("a", scaling=SLO)
    world.apply(scaling=SLO)
    await world.run_until(lambda: world.is_ready("a") and world.is_ready())
    decide = scaling.decide_scale

    def faulty(window, state, spec, *rest):
        if spec.scaling.max_replicas == 7:
            raise ZeroDivisionError("a fault")
        return decide(window, state, spec, *rest)

    monkeypatch.setattr(scaling, "decide_scale", faulty)
    world.apply("a", scaling={**SLO, "maxReplicas": 7})
    await drive(world, 8, busy=3.0)
    assert world.model()["spec"]["replicas"] > 1
    assert "scaling raised model=a" in caplog.text and "ZeroDivisionError" in caplog.text


async def test_the_end_of_an_override_is_told(world):
    world.apply(scaling=SLO)
    await world.run_until(world.is_ready)
    until = stamp(world.clock.now() + 20)
    world.apply(scaling={**SLO, "override": {"replicas": 2, "until": until, "reason": "launch"}})
    await world.run(15)
    assert world.conditions()["ScalingActive"]["reason"] == "OverrideActive"
    await world.run(10)
    (note,) = [note for note in world.events.notes if note.reason == "OverrideEnded"]
    assert "has ended" in note.message
    assert world.conditions()["ScalingActive"]["reason"] == "ScalingBySLO"


async def test_metrics_that_stop_are_said_whatever_on_call_holds(world):
    override = {"replicas": 2, "until": "2040-01-01T00:00:00Z", "reason": "launch"}
    world.apply(scaling={**SLO, "override": override})
    await world.run_until(world.is_ready)
    world.agents.silent = True
    await world.run(10)
    assert world.conditions()["MetricsAvailable"]["reason"] == "MetricsStale"


async def test_one_silent_router_of_two_takes_no_replica_away(world):
    world.restart()
    world.operator.exchange.routing.routers = (RouterPod("r1", "10.0.0.1:9700"), RouterPod("r2", "10.0.0.2:9700"))
    world.agents.routers = {"r1": 3.0, "r2": 3.0}
    world.apply(scaling={**SLO, "scaleDownStabilization": "20s"})
    await world.run_until(lambda: world.model()["spec"]["replicas"] == 8)
    await world.run_until(world.is_ready)
    del world.agents.routers["r2"]
    await world.run(60)
    assert world.model()["spec"]["replicas"] == 8
    metrics = world.conditions()["MetricsAvailable"]
    assert (metrics["status"], metrics["reason"]) == ("False", "MetricsStale") and "1 of 2 routers" in metrics[
        "message"
    ]
    assert "has not reported" in world.conditions()["ScalingActive"]["message"]
    world.agents.routers["r1"] = 6.5
    await world.run(5)
    assert world.model()["spec"]["replicas"] == 9, "what adds goes on"
    world.agents.routers = {"r1": 0.5, "r2": 0.5}
    await world.run_until(lambda: world.model()["spec"]["replicas"] < 9, 90)


async def knock(world: World, requests: int) -> None:
    """One second of clients, as a router treats them: served, kept waiting, or refused at once."""
    (route,) = world.agents.routes
    second = int(world.clock.now()) - 1
    found = {"in_flight_sum": 0.5} if route.endpoints else {"queued_sum": requests} if route.coming else {}
    rejected = 0 if found else requests
    world.agents.seconds.append(
        ModelSecond(second=second, model=route.model, arrivals=requests, rejected=rejected, **found)
    )
    await world.run(1)


async def test_a_model_without_replicas_gets_one_once_somebody_asks(world):
    world.apply(scaling={**SLO, "minReplicas": 0, "maxReplicas": 3, "scaleDownStabilization": "5s"})
    await world.run_until(world.is_ready)
    await world.run_until(lambda: world.model()["spec"]["replicas"] == 0 and not world.pods(), 120)
    await world.run_until(lambda: world.conditions()["Ready"]["status"] == "True")
    for _ in range(20):
        await knock(world, 2)
    assert world.model()["spec"]["replicas"] >= 1
    assert world.agents.routes[0].endpoints, "what waited is served"
    await world.run_until(lambda: world.model()["spec"]["replicas"] == 0, 120)


def model_at(replicas: int, *, scaling: dict, engine: str = "True", **spec) -> CompletionModel:
    condition = {"type": "EngineReady", "status": engine, "reason": "X", "lastTransitionTime": "2027-01-01T00:00:00Z"}
    return CompletionModel.from_api(
        {
            "apiVersion": "hotstart.dev/v1alpha1",
            "kind": "CompletionModel",
            "metadata": {"name": "m", "namespace": "team"},
            "spec": merge(SPEC, {"replicas": replicas, "scaling": {**SLO, **scaling}, **spec}),
            "status": {"conditions": [condition]},
        }
    )


AT_ZERO = {"minReplicas": 0}
HELD = {"replicas": 0, "until": "2040-01-01T00:00:00Z", "reason": "quiet"}


@pytest.mark.parametrize(
    ("model", "waits"),
    [
        (model_at(0, scaling=AT_ZERO), True),
        (model_at(0, scaling=AT_ZERO, engine="False"), False),
        (model_at(0, scaling={"mode": "External"}), False),
        (model_at(0, scaling={**AT_ZERO, "override": HELD}), False),
        (model_at(0, scaling={**AT_ZERO, "override": {**HELD, "until": "2020-01-01T00:00:00Z"}}), True),
        (model_at(0, scaling=AT_ZERO, management="Paused"), False),
    ],
)
def test_requests_wait_for_a_model_at_zero_where_waiting_brings_a_replica(model, waits):
    assert make_route(model, (), cap=1, routers=1, created=0, reason="RouterBehind: x", now=NOW).coming is waits


def test_one_request_that_waits_wakes_a_model_at_zero():
    window = add_seconds(Window(), [traffic(int(NOW) - 1, 0.0, 0.4, completed=0)], NOW)
    spec = model_at(0, scaling=AT_ZERO).spec
    decision, _ = decide_scale(window, ScaleState(), spec, Fleet(current=0, ready=0, coming=0), NOW)
    assert (decision.replicas, decision.reason) == (1, Reason.REQUESTS_WAITING)
