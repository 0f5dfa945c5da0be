"""Whether a GPU can be had: what is said for which nodes and pods, and what stops a build before it starts."""

from __future__ import annotations

import pytest
from hotstart.operator.api.model_spec import Accelerator
from hotstart.operator.core.accelerators import (
    decide_accelerator,
    describe_drivers,
    describe_need,
    explain_unschedulable,
    make_gpu_need,
)
from hotstart.operator.core.facts import Trouble
from hotstart.operator.core.gpu_fleet import GpuFleet, make_gpu_node, make_gpu_pod
from hypothesis import given
from hypothesis import strategies as st

from tests.operator.gpu_models import A100, H100, gpu_node

NO_FREE, MISMATCH = "NoFreeAccelerator", "AcceleratorMismatch"
GEFORCE = "NVIDIA-GeForce-RTX-4090"


def gpu_pod(node: str, count: int = 1, resource: str = "nvidia.com/gpu", **spec) -> dict:
    containers = [{"resources": {"limits": {resource: str(count)}}}]
    return {"metadata": {"uid": f"{node}-{count}"}, "spec": {"nodeName": node, "containers": containers, **spec}}


def fleet_of(nodes=(), pods=(), *, whole=True) -> GpuFleet:
    facts = tuple(fact for node in nodes if (fact := make_gpu_node(node)) is not None)
    return GpuFleet(facts, tuple(fact for pod in pods if (fact := make_gpu_pod(pod)) is not None), whole)


def need_of(product=H100, mig_profile=None, count=1):
    return make_gpu_need(Accelerator(product=product, mig_profile=mig_profile), count)


def cordoned(node: dict) -> dict:
    return {**node, "spec": {**node["spec"], "unschedulable": True}}


CPU_NODE = {"metadata": {"name": "cpu", "labels": {}}, "status": {"allocatable": {"cpu": "8"}}}
MIXED = {"resources": {"nvidia.com/gpu": "0", "nvidia.com/mig-3g.40gb": "2"}, "strategy": "mixed"}
FREE = [
    ("one is free", need_of(), [gpu_node("a")], []),
    ("one of two is taken", need_of(), [gpu_node("a", gpus=2)], [gpu_pod("a")]),
    ("a partition is free", need_of(A100, "3g.40gb"), [gpu_node("a", A100, **MIXED)], []),
    (
        "a pod that has ended holds nothing",
        need_of(),
        [gpu_node("a")],
        [{**gpu_pod("a"), "status": {"phase": "Failed"}}],
    ),
    (
        "the taint of GPU nodes is tolerated",
        need_of(),
        [gpu_node("a", taints=[{"key": "nvidia.com/gpu", "effect": "NoSchedule"}])],
        [],
    ),
    (
        "labels agree",
        need_of(),
        [gpu_node("a", memory="81559", compute_major="9", compute_minor="0", driver="590")],
        [],
    ),
    ("a driver of a data centre may be old", need_of(), [gpu_node("a", driver="570")], []),
    (
        "a partition by its product's name",
        need_of(f"{A100}-MIG-3g.40gb"),
        [gpu_node("a", f"{A100}-MIG-3g.40gb", 2)],
        [],
    ),
]


@pytest.mark.parametrize(("need", "nodes", "pods"), [case[1:] for case in FREE], ids=[case[0] for case in FREE])
def test_a_free_gpu_needs_no_word(need, nodes, pods):
    assert decide_accelerator(need, fleet_of(nodes, pods)) is None


#: Name, need, nodes, pods, reason, whether it blocks, what is said.
WORDS = [
    (
        "no node has a GPU",
        need_of(),
        [CPU_NODE],
        [],
        NO_FREE,
        False,
        ["Needs 1 NVIDIA-H100-80GB-HBM3, no node has it; no node has a GPU."],
    ),
    (
        "a GPU is free but of another product",
        need_of(),
        [gpu_node("a", A100, 4)],
        [gpu_pod("a", 3)],
        NO_FREE,
        False,
        ["no node has it; nodes have 4 NVIDIA-A100-SXM4-80GB (1 free)."],
    ),
    (
        "all are taken",
        need_of(),
        [gpu_node("a", gpus=2)],
        [gpu_pod("a", 2)],
        NO_FREE,
        False,
        ["Needs 1 NVIDIA-H100-80GB-HBM3, 0 of 2 are free."],
    ),
    (
        "four are free but on two nodes",
        need_of(count=4),
        [gpu_node("a", gpus=2), gpu_node("b", gpus=2)],
        [],
        NO_FREE,
        False,
        ["of one node, 4 of 4 are free, at most 2 on one node"],
    ),
    ("the node is cordoned", need_of(), [cordoned(gpu_node("a"))], [], NO_FREE, False, ["a is cordoned"]),
    ("the node is not ready", need_of(), [gpu_node("a", ready=False)], [], NO_FREE, False, ["a is not ready"]),
    (
        "the node is tainted",
        need_of(),
        [gpu_node("a", taints=[{"key": "team", "effect": "NoSchedule"}])],
        [],
        NO_FREE,
        False,
        ["a is tainted team"],
    ),
    (
        "its labels are not there",
        need_of(),
        [{"metadata": {"name": "a"}, "status": {"allocatable": {"nvidia.com/gpu": "8"}}}],
        [],
        NO_FREE,
        False,
        ["node a has GPUs but no label nvidia.com/gpu.product", "install"],
    ),
    (
        "its device plugin offers none",
        need_of(),
        [gpu_node("a", gpus=0)],
        [],
        NO_FREE,
        False,
        ["device plugin offers none"],
    ),
    (
        "another profile",
        need_of(A100, "1g.10gb"),
        [gpu_node("a", A100, **MIXED)],
        [],
        MISMATCH,
        False,
        ["offers mig-3g.40gb and no mig-1g.10gb"],
    ),
    (
        "a whole one where there are partitions",
        need_of(A100),
        [gpu_node("a", A100, **MIXED)],
        [],
        MISMATCH,
        False,
        ["offers mig-3g.40gb and no gpu"],
    ),
    (
        "partitions under the strategy single",
        need_of(A100, "3g.40gb"),
        [gpu_node("a", f"{A100}-MIG-3g.40gb", 2)],
        [],
        MISMATCH,
        False,
        ["strategy single", f"product {A100}-MIG-3g.40gb", "leave migProfile out"],
    ),
    (
        "another compute capability",
        need_of(),
        [gpu_node("a", compute_major="8", compute_minor="9")],
        [],
        MISMATCH,
        True,
        ["node a says compute capability 8.9", "known with 9.0"],
    ),
    ("half the memory", need_of(), [gpu_node("a", memory="40960")], [], MISMATCH, True, ["40 GiB", "80 GiB"]),
    (
        "a driver of before CUDA 13",
        need_of(GEFORCE),
        [gpu_node("a", GEFORCE, driver="550")],
        [],
        MISMATCH,
        True,
        ["driver 550", "update the driver"],
    ),
    (
        "a driver that is too old for any board",
        need_of(),
        [gpu_node("a", driver="470")],
        [],
        MISMATCH,
        True,
        ["driver 470", "needs 535 at least"],
    ),
    (
        "the same by the label's old name",
        need_of(GEFORCE),
        [gpu_node("a", GEFORCE, driver_old="550")],
        [],
        MISMATCH,
        True,
        ["driver 550"],
    ),
    (
        "the sound node is taken",
        need_of(),
        [gpu_node("a", memory="40960"), gpu_node("b")],
        [gpu_pod("b")],
        NO_FREE,
        False,
        ["0 of 1 are free"],
    ),
]


@pytest.mark.parametrize(
    ("need", "nodes", "pods", "reason", "blocks", "words"),
    [case[1:] for case in WORDS],
    ids=[case[0] for case in WORDS],
)
def test_what_is_said(need, nodes, pods, reason, blocks, words):
    verdict = decide_accelerator(need, fleet_of(nodes, pods))
    assert verdict is not None
    assert (verdict.failure.reason, verdict.blocks) == (reason, blocks)
    for word in words:
        assert word in verdict.failure.message
    assert verdict.failure.retryable, "another node heals it"


def test_init_containers_hold_what_they_need_most():
    first = [{"resources": {"limits": {"nvidia.com/gpu": "2"}}}]
    sidecar = [{"resources": {"limits": {"nvidia.com/gpu": "1"}}, "restartPolicy": "Always"}]
    assert make_gpu_pod(gpu_pod("a", 1, initContainers=first)).holds == {"nvidia.com/gpu": 2}
    assert make_gpu_pod(gpu_pod("a", 2, initContainers=first)).holds == {"nvidia.com/gpu": 2}
    assert make_gpu_pod(gpu_pod("a", 2, initContainers=sidecar)).holds == {"nvidia.com/gpu": 3}
    waiting = gpu_pod("a")
    del waiting["spec"]["nodeName"]
    assert make_gpu_pod(waiting) is None


def test_the_plan_says_how_many_are_needed_and_free():
    nodes = [gpu_node("a", gpus=4), cordoned(gpu_node("b", gpus=4))]
    assert describe_need(need_of(count=2), fleet_of(nodes, [gpu_pod("a", 3)])) == f"needs 2 {H100}, 1 free"
    assert describe_need(need_of(), fleet_of(nodes, whole=False)) == f"needs 1 {H100}, 4 free at most"
    assert describe_need(need_of(A100, "3g.40gb"), fleet_of([])) == f"needs 1 {A100} (3g.40gb), 0 free"


def test_an_old_driver_is_told():
    assert describe_drivers(need_of(), fleet_of([gpu_node("a", driver="590")])) == ""
    assert "minor version" in describe_drivers(need_of(), fleet_of([gpu_node("a", driver="580")]))
    assert "forward compat" in describe_drivers(need_of(), fleet_of([gpu_node("a", driver="550")]))


def test_the_scheduler_s_word_in_terms_of_gpus():
    taken = decide_accelerator(need_of(), fleet_of([]))
    waits = Trouble("Unschedulable", "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")
    assert explain_unschedulable(waits, taken) is taken.failure
    alone = explain_unschedulable(waits, None)
    assert alone.reason == "NoFreeAccelerator" and "Insufficient nvidia.com/gpu" in alone.message
    assert explain_unschedulable(Trouble("Unschedulable", "Insufficient cpu"), None) is None
    assert explain_unschedulable(Trouble("ImagePullBackOff", ""), taken) is None
    assert explain_unschedulable(None, taken) is None


@given(
    gpus=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=5),
    count=st.integers(1, 8),
)
def test_a_verdict_stands_exactly_where_no_node_has_enough(gpus, count):
    nodes = [gpu_node(f"n{i}", gpus=total) for i, (total, _) in enumerate(gpus)]
    pods = [gpu_pod(f"n{i}", taken) for i, (_, taken) in enumerate(gpus) if taken]
    verdict = decide_accelerator(need_of(count=count), fleet_of(nodes, pods))
    assert (verdict is None) == any(total - taken >= count for total, taken in gpus)
