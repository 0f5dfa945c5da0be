"""What a real API server tells of nodes, evictions and pauses: the operator's process, with its own rights."""

from __future__ import annotations

import uuid

import pytest

from tests.operator.live import until

pytestmark = pytest.mark.integration


@pytest.fixture
async def node(stage):
    """A node of the test's own."""
    name = f"node-{uuid.uuid4().hex[:8]}"
    await stage.cluster.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    yield name
    await stage.cluster.request("DELETE", f"/api/v1/nodes/{name}")


async def bind(stage, pod: dict, node: str) -> None:
    """What the scheduler does."""
    name = pod["metadata"]["name"]
    target = {"apiVersion": "v1", "kind": "Node", "name": node}
    binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
    path = f"/api/v1/namespaces/{stage.models}/pods/{name}/binding"
    await stage.cluster.request("POST", path, body=binding)


async def pods_besides(stage, name: str) -> list[dict]:
    return [pod for pod in await stage.serving_pods() if pod["metadata"]["name"] != name]


async def is_draining(stage, name: str) -> bool:
    found = await stage.cluster.get("Pod", stage.models, name)
    return found is None or found["metadata"]["labels"].get("hotstart.dev/role") == "draining"


async def test_a_cordoned_node_wakes_its_models_which_move_before_it_is_drained(stage, node) -> None:
    """The operator watches one namespace only; nodes have none."""
    stage.start("op-1")
    await stage.make_ready()
    (pod,) = await stage.serving_pods()
    name = pod["metadata"]["name"]
    await bind(stage, pod, node)
    await stage.cluster.patch("Node", "", node, {"spec": {"unschedulable": True}})
    (new,) = await until(lambda: pods_besides(stage, name), "another pod is made")
    assert not await is_draining(stage, name), "the old one serves until the new one does"
    await stage.play_pod(new)
    await until(lambda: is_draining(stage, name), "the old one drains")


async def is_paused(stage) -> bool:
    return (await stage.condition("Progressing")).get("reason") == "Paused"


async def two_pods(stage) -> bool:
    return len(await stage.serving_pods()) == 2


async def test_a_paused_operator_says_so_and_makes_no_pod(stage) -> None:
    first = stage.start("op-1")
    await stage.make_ready()
    assert await first.terminate() == 0
    change = {"spec": {"scaling": {"mode": "External"}, "replicas": 2}}
    await stage.cluster.patch("CompletionModel", stage.models, "m", change)
    paused = stage.start("op-2", HOTSTART_MANAGEMENT="Paused")
    await until(lambda: is_paused(stage), "status says Paused")
    stage.routes.clear()
    await until(lambda: stage.routes, "routers are told of their models")
    assert len(await stage.serving_pods()) == 1
    assert await paused.terminate() == 0
    stage.start("op-3")
    await until(lambda: two_pods(stage), "what was wanted meanwhile is done")
