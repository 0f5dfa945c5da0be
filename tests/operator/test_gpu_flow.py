"""A model on GPUs through the reconcile: what is said while no GPU is free, and that it goes on by itself."""

from __future__ import annotations

import pytest
from hotstart.engines.builder.termination import exit_code, make_failure, make_failure_message
from hotstart.engines.errors import HostMemoryFull
from hotstart.engines.errors import Reason as EngineReason
from hotstart.operator.core.gpu_request import RESOURCE_GPU

from tests.operator.gpu_models import A100, H100, REPLIT, GpuWorld, apply_replit, gpu_engine, gpu_node


@pytest.fixture
def world() -> GpuWorld:
    return GpuWorld()


def ready_of(world, kind="Engine") -> dict:
    """The Ready condition of the only Engine."""
    (engine,) = world.cluster.all(kind)
    return next(c for c in engine.get("status", {}).get("conditions", ()) if c["type"] == "Ready")


def warnings(world) -> list[str]:
    return [str(note.reason) for note in world.events.notes if note.warning]


def holder(world, node: str, count: int = 1, namespace: str = "other") -> None:
    """A pod of somebody else on that node."""
    containers = [{"name": "x", "resources": {"limits": {RESOURCE_GPU: str(count)}}}]
    labels = {"app.kubernetes.io/component": "serving"}
    meta = {"name": f"holder-{node}", "namespace": namespace, "labels": labels}
    world.cluster.create_now("Pod", {"metadata": meta, "spec": {"nodeName": node, "containers": containers}})


async def test_a_free_gpu_builds_and_serves(world):
    world.cluster.create_now("Node", gpu_node("a", gpus=2))
    apply_replit(world)
    await world.run_until(world.is_ready)
    assert warnings(world) == []
    (pod,) = world.pods()
    assert pod["spec"].get("nodeSelector", {}).get("nvidia.com/gpu.product") == H100
    assert pod["spec"]["nodeName"] == "a"


async def test_a_gpu_that_no_node_has_is_said_with_what_is_there(world):
    world.cluster.create_now("Node", gpu_node("a", A100, 4))
    holder(world, "a", 3)
    apply_replit(world)
    await world.run(10)
    found = world.conditions()["EngineReady"]
    assert (found["status"], found["reason"]) == ("False", "NoFreeAccelerator")
    assert f"Needs 1 {H100}, no node has it; nodes have 4 {A100} (1 free)." in found["message"]
    assert set(warnings(world)) == {"NoFreeAccelerator"}
    assert len(world.jobs("build")) == 1, "it waits in the scheduler's queue, where an autoscaler sees it"


async def test_it_is_said_before_the_scheduler_says_anything(world):
    world.cluster.create_now("Node", gpu_node("a", A100))
    apply_replit(world)
    await world.run_until(lambda: bool(world.cluster.all("Engine")))
    world._move_pod = lambda pod: None  # no scheduler, no kubelet
    await world.run(2)
    assert ready_of(world)["reason"] == "NoFreeAccelerator"
    await world.run(10)
    assert ready_of(world)["reason"] == "NoFreeAccelerator", "it does not flap while the pod has no node"


async def test_a_node_that_comes_is_enough(world):
    apply_replit(world)
    await world.run(10)
    assert world.conditions()["EngineReady"]["reason"] == "NoFreeAccelerator"
    world.cluster.create_now("Node", gpu_node("a", gpus=2))
    await world.run_until(world.is_ready)
    assert len(world.jobs("build")) <= 1


async def test_a_gpu_that_becomes_free_is_enough(world):
    world.cluster.create_now("Node", gpu_node("a"))
    holder(world, "a")
    apply_replit(world)
    await world.run(10)
    assert "0 of 1 are free" in world.conditions()["EngineReady"]["message"]
    world.cluster.drop("Pod", "holder-a", "other")
    await world.run_until(world.is_ready)


async def test_a_node_whose_gpu_differs_gets_no_job(world):
    world.cluster.create_now("Node", gpu_node("a", compute_major="8", compute_minor="0"))
    apply_replit(world)
    await world.run(30)
    found = world.conditions()["EngineReady"]
    assert found["reason"] == "AcceleratorMismatch" and "node a says compute capability 8.0" in found["message"]
    assert world.jobs("build") == []
    assert set(warnings(world)) == {"AcceleratorMismatch"}
    world.cluster.create_now("Node", gpu_node("b", gpus=2))
    await world.run_until(world.is_ready)


async def test_a_partition_that_no_node_offers(world):
    offers = {"nvidia.com/gpu": "0", "nvidia.com/mig-3g.40gb": "2"}
    world.cluster.create_now("Node", gpu_node("a", A100, resources=offers, strategy="mixed"))
    apply_replit(world, engine=gpu_engine(accelerator={"product": A100, "migProfile": "1g.20gb"}))
    await world.run(10)
    found = world.conditions()["EngineReady"]
    assert found["reason"] == "AcceleratorMismatch"
    assert "offers mig-3g.40gb and no mig-1g.20gb" in found["message"]


async def test_replicas_that_wait_for_a_gpu_say_so(world):
    world.cluster.create_now("Node", gpu_node("a"))
    apply_replit(world, replicas=2)
    await world.run_until(lambda: world.model()["status"].get("readyReplicas") == 1)
    await world.run(20)
    found = world.conditions()["WorkloadReady"]
    assert (found["status"], found["reason"]) == ("False", "NoFreeAccelerator")
    assert "1 of 2 replicas are ready" in found["message"] and "0 of 1 are free" in found["message"]
    assert "NoFreeAccelerator" in warnings(world)
    world.cluster.create_now("Node", gpu_node("b"))
    await world.run_until(world.is_ready)


async def test_without_the_right_to_list_pods_free_is_at_most(world):
    world.cluster.create_now("Node", gpu_node("a", A100, 4))
    world.cluster.forbidden.add(("Pod", ""))
    holder(world, "a", 3)
    apply_replit(world)
    await world.run(10)
    assert f"nodes have 4 {A100} (4 free at most)" in world.conditions()["EngineReady"]["message"]


async def test_an_engine_is_built_ahead_of_its_first_replica(world):
    world.cluster.create_now("Node", gpu_node("a"))
    apply_replit(world, replicas=0)
    await world.run_until(lambda: world.conditions().get("EngineReady", {}).get("status") == "True")
    await world.run(10)
    assert world.pods() == [] and len(world.jobs("build")) == 1
    assert world.conditions()["WorkloadReady"]["reason"] == "ScaledToZero"
    apply_replit(world, replicas=1)
    await world.run_until(lambda: world.is_ready() and len(world.pods()) == 1)
    assert sum(write.startswith("create Job/build-") for write in world.cluster.writes) == 1


async def test_an_engine_is_built_ahead_in_mode_slo_too(world):
    world.cluster.create_now("Node", gpu_node("a"))
    apply_replit(world, replicas=0, scaling={"mode": "SLO", "minReplicas": 0, "maxReplicas": 4})
    await world.run_until(lambda: world.conditions().get("EngineReady", {}).get("status") == "True")
    assert world.pods() == [] and len(world.jobs("build")) == 1


async def test_the_plan_says_what_the_build_needs(world):
    world.cluster.create_now("Node", gpu_node("a", A100, 4))
    apply_replit(world)
    await world.run(10)
    plan = world.model()["status"]["plan"]
    assert plan.startswith("Build engine ") and "the first of this namespace" in plan
    assert f"needs 1 {H100}, 0 free" in plan and "about " in plan and "no pod is replaced" in plan
    assert "weights 6." in plan and "128 KiB" in plan and "tokens of KV cache" in plan
    assert len(plan) <= 1024


async def test_the_plan_of_a_change_says_what_differs_and_what_is_replaced(world):
    world.cluster.create_now("Node", gpu_node("a", gpus=4))
    apply_replit(world)
    await world.run_until(world.is_ready)
    apply_replit(world, engine=gpu_engine(dtype="bfloat16"))
    await world.run_until(lambda: "dtype: float16 -> bfloat16" in world.model()["status"]["plan"])
    plan = world.model()["status"]["plan"]
    assert "1 pod is replaced" in plan and f"needs 1 {H100}, 3 free" in plan
    assert "about 3 s" in plan, "as long as the last build with these tools took"


async def test_the_plan_of_what_cannot_fit_is_the_arithmetic(world):
    apply_replit(world, {**REPLIT, "parameters": 70_000_000_000})
    await world.run_until(lambda: "plan" in world.model().get("status", {}))
    await world.run(5)
    plan = world.model()["status"]["plan"]
    assert plan.startswith("No engine is built") and "GiB" in plan


async def test_an_engine_in_the_store_is_planned_as_reused(world):
    world.cluster.create_now("Node", gpu_node("a", gpus=2))
    apply_replit(world)
    await world.run_until(world.is_ready)
    world.cluster.drop("CompletionModel", "m")
    for engine in world.cluster.all("Engine"):
        world.cluster.drop("Engine", engine["metadata"]["name"])
    apply_replit(world, name="again")
    plans = set()
    for _ in range(30):
        await world.run(1)
        plans.add(world.model("again").get("status", {}).get("plan", "")[:12])
    assert plans <= {"", "Inspect the ", "Look for eng", "Reuse engine"} and "Reuse engine" in plans


async def test_a_second_run_writes_nothing_while_a_gpu_is_missing(world):
    world.cluster.create_now("Node", gpu_node("a", A100))
    apply_replit(world)
    await world.run(40)
    before = list(world.cluster.writes)
    await world.run(20)
    world.restart()
    await world.run(10)
    assert world.cluster.writes[len(before) :] == []


def memory_of(job: dict) -> int:
    (builder,) = job["spec"]["template"]["spec"]["containers"]
    return int(builder["resources"]["requests"]["memory"].removesuffix("Mi"))


TOOL_KILLED = make_failure(HostMemoryFull("trtllm-build was killed (exit 137)."), EngineReason.BUILD_FAILED)
KILLED = {
    "the container": ({"exitCode": 137, "reason": "OOMKilled"}, "container builder, which had"),
    "its tool": (
        {"exitCode": exit_code(TOOL_KILLED), "reason": "Error", "message": make_failure_message(TOOL_KILLED)},
        "trtllm-build was killed",
    ),
}


@pytest.mark.parametrize(("ended", "words"), KILLED.values(), ids=KILLED.keys())
async def test_a_build_that_is_killed_for_memory_asks_for_more(world, ended, words):
    world.cluster.create_now("Node", gpu_node("a", gpus=2))
    killed = {"phase": "Failed", "containerStatuses": [{"name": "builder", "state": {"terminated": ended}}]}
    kind, place = "app.kubernetes.io/component", world._move_pod

    def kill_builds(pod):
        place(pod) if pod["metadata"]["labels"].get(kind) != "build" else world._set(pod, killed)

    world._move_pod = kill_builds
    apply_replit(world)
    await world.run(70)
    found = world.conditions()["EngineReady"]
    assert found["reason"] == "OutOfMemory" and words in found["message"]
    asked = [memory_of(job) for job in world.cluster.all("Job") if job["metadata"]["labels"][kind] == "build"]
    assert len(asked) == 3 and asked[1] > asked[0] * 1.4 and asked[2] > asked[1] * 1.4
    world._move_pod = place
    await world.run_until(world.is_ready, 200)


@pytest.mark.parametrize("silent", [False, True])
async def test_a_conversion_under_way_is_a_phase_of_the_build(world, silent):
    world.cluster.create_now("Node", gpu_node("a", gpus=2))
    world.agents.silent = silent
    place = world._move_pod

    def convert(pod):
        if pod["metadata"]["labels"].get("app.kubernetes.io/component") != "build":
            place(pod)
            return
        if not pod["spec"].get("nodeName"):
            world.cluster.change("Pod", pod["metadata"]["name"], {"spec": {"nodeName": "a"}})
            return
        statuses = [{"name": "convert", "state": {"running": {}}}]
        world._set(pod, {"phase": "Pending", "podIP": "10.0.0.9", "initContainerStatuses": statuses})

    world._move_pod = convert
    apply_replit(world)
    await world.run(12)
    (engine,) = world.cluster.all("Engine")
    assert engine["status"]["phase"] == "Converting"
    assert (engine["status"].get("percent"), engine["status"].get("etaSeconds")) == (
        (None, None) if silent else (12, 90)
    )
    assert "without a GPU" in ready_of(world)["message"]
