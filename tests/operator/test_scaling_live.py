"""Traffic changes spec.replicas through a real API server's /scale, with the operator's own rights."""

from __future__ import annotations

import pytest
from hotstart.exchange.names import FIELD_MANAGER

from tests.operator.live import until

pytestmark = pytest.mark.integration
UP_TO_TWO = {"mode": "SLO", "maxReplicas": 2, "scaleDownStabilization": "5s"}


async def replicas(stage) -> int:
    return (await stage.model())["spec"]["replicas"]


async def steps(stage) -> list[tuple[int, int, str]]:
    """The decisions in status, newest first."""
    found = (await stage.model()).get("status", {}).get("decisions", ())
    return [(decision["from"], decision["to"], decision["reason"]) for decision in found]


async def scale_writers(stage) -> set[str]:
    fields = (await stage.model())["metadata"]["managedFields"]
    return {entry["manager"] for entry in fields if entry.get("subresource") == "scale"}


async def test_traffic_scales_to_two_and_its_end_back_to_one(stage):
    stage.start("op-1")
    await stage.make_ready()
    await stage.cluster.patch("CompletionModel", stage.models, "m", {"spec": {"scaling": UP_TO_TWO}})
    assert await replicas(stage) == 1

    async def is_two() -> bool:
        return await replicas(stage) == 2

    stage.busy = 2.0
    await until(is_two, "spec.replicas is 2")
    assert await scale_writers(stage) == {FIELD_MANAGER}

    async def second_pod() -> dict | None:
        pods = await stage.serving_pods()
        return next((pod for pod in pods if "podIP" not in pod.get("status", {})), None)

    await stage.play_pod(await until(second_pod, "a second pod"))

    async def two_serve() -> bool:
        return (await stage.model())["status"].get("readyReplicas") == 2

    await until(two_serve, "two replicas serve")
    assert await steps(stage) == [(1, 2, "DemandRose")]
    events = await stage.cluster.list("Event", namespace=stage.models)
    (event,) = (event for event in events if event["reason"] == "DemandRose")
    assert event["message"].startswith("Scaled from 1 to 2:")
    assert event["involvedObject"]["name"] == "m"

    async def is_one() -> bool:
        return await replicas(stage) == 1 and len(await stage.serving_pods()) == 1

    stage.busy = 0.0
    await until(is_one, "one replica is left", 150)

    async def told() -> bool:
        return await steps(stage) == [(2, 1, "DemandFell"), (1, 2, "DemandRose")]

    await until(told, "status tells of both decisions")
