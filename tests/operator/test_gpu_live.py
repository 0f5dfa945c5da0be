"""A model on GPUs against a real API server: admission of its Jobs, and nodes whose GPUs are only said to be there."""

from __future__ import annotations

import pytest

from tests.operator.gpu_models import A100, H100, REPLIT, URI, gpu_engine, gpu_node
from tests.operator.live import until

pytestmark = pytest.mark.integration


@pytest.fixture
async def stage(stage, api_server, namespace):
    """In a namespace of the restricted standard; the nodes that a test adds go with it."""
    api_server.run_kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    stage.nodes = []
    yield stage
    for name in stage.nodes:
        api_server.run_kubectl("delete", "node", name)


async def add_node(stage, name: str, product: str, **kwargs) -> None:
    """A node that nobody runs: its status is patched, as a kubelet and a device plugin would."""
    name = f"{stage.models}-{name}"
    node = gpu_node(name, product, **kwargs)
    await stage.cluster.create({"apiVersion": "v1", "kind": "Node", "metadata": node["metadata"], "spec": node["spec"]})
    stage.nodes.append(name)
    status = {**node["status"], "capacity": node["status"]["allocatable"]}
    await stage.cluster.patch_status("Node", "", name, {"status": status})
    standing = await stage.cluster.get("Node", "", name)
    taints = [t for t in standing["spec"].get("taints", ()) if t["key"] != "node.kubernetes.io/not-ready"]
    await stage.cluster.patch("Node", "", name, {"spec": {"taints": taints}})


async def make_model(stage) -> None:
    body = {
        "apiVersion": "hotstart.dev/v1alpha1",
        "kind": "CompletionModel",
        "metadata": {"name": "m", "namespace": stage.models},
        "spec": {"checkpoint": {"uri": URI}, "engine": gpu_engine(), "scaling": {"mode": "External"}},
    }
    await stage.cluster.create(body)
    await stage.play_job("inspect", REPLIT)


async def reason_of(stage, reason: str, *words: str) -> dict | None:
    found = await stage.condition("EngineReady")
    said = found.get("reason") == reason and all(word in found["message"] for word in words)
    return found if said else None


async def events_of(stage, reason: str) -> list[dict]:
    events = await stage.cluster.list("Event", namespace=stage.models)
    return [event for event in events if event.get("reason") == reason]


async def test_a_gpu_that_no_node_has_and_then_one_has(stage):
    await add_node(stage, "a100", A100, gpus=4)
    stage.start("op-1")
    await make_model(stage)
    await until(
        lambda: reason_of(stage, "NoFreeAccelerator", f"Needs 1 {H100}, no node has it", f"4 {A100} (4 free at most)"),
        "the GPU that nobody has is said",
    )
    assert await until(lambda: events_of(stage, "NoFreeAccelerator"), "an event says it")
    labels = "app.kubernetes.io/component=build"
    (job,) = await until(lambda: stage.cluster.list("Job", namespace=stage.models, labels=labels), "the build Job")
    plan = (await stage.model())["status"]["plan"]
    assert f"needs 1 {H100}, 0 free at most" in plan and "tokens of KV cache" in plan

    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job["metadata"]["name"], "uid": job["metadata"]["uid"]}
    template = job["spec"]["template"]
    meta = {**template["metadata"], "name": f"{job['metadata']['name']}-x1", "namespace": stage.models}
    meta["ownerReferences"] = [{**owner, "controller": True}]
    pod = await stage.cluster.create({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]})
    assert pod["spec"]["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "1"}, "restricted admits it"

    await add_node(stage, "h100", H100)
    await until(lambda: reason_of(stage, "EngineBuilding"), "a node with the GPU is enough")


async def test_a_node_whose_labels_contradict_one_another_gets_no_job(stage):
    await add_node(stage, "wrong", H100, compute_major="8", compute_minor="0")
    stage.start("op-1")
    await make_model(stage)
    await until(lambda: reason_of(stage, "AcceleratorMismatch", "compute capability 8.0"), "the node's fault is said")
    assert await stage.cluster.list("Job", namespace=stage.models, labels="app.kubernetes.io/component=build") == ()
    await add_node(stage, "right", H100)
    labels = "app.kubernetes.io/component=build"
    await until(lambda: stage.cluster.list("Job", namespace=stage.models, labels=labels), "the build Job", 90)
