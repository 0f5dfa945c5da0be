"""What status and scaling make of traffic as it comes and goes, second by second; all of it in memory."""

from __future__ import annotations

import pytest
from hotstart.operator.reconcile.routing import RouterPod

from tests.operator.test_scale import traffic
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
