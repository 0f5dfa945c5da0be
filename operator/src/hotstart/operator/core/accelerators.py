"""Whether a GPU can be had, said before a pod waits for ever. Pure; the scheduler decides, this is what is said.

What blocks and what is only told: docs/adr/0014.
"""

from __future__ import annotations

from dataclasses import dataclass

from hotstart.engines.accelerators import (
    CONTAINER_DRIVER,
    CUDA_13_DRIVER,
    GIB,
    MIB,
    find_accelerator,
    least_driver,
)
from hotstart.operator.api import Reason
from hotstart.operator.api.model_spec import Accelerator
from hotstart.operator.core.facts import Trouble
from hotstart.operator.core.gpu_fleet import GpuFleet, GpuNode
from hotstart.operator.core.gpu_request import LABEL_PRODUCT, RESOURCE_GPU, RESOURCE_MIG, GpuRequest, make_gpu_request
from hotstart.operator.core.jobs import Failure

VENDOR = "nvidia.com/"
MIG_IN_PRODUCT = "-MIG-"

MEMORY_TOLERANCE = 0.05
SHOWN = 4


@dataclass(frozen=True)
class GpuNeed:
    """What an engine needs: the request, and what its GPU must be. ``sm`` 90 is compute capability 9.0."""

    request: GpuRequest
    sm: int = 0
    memory: int = 0  # bytes; 0: not compared


@dataclass(frozen=True)
class GpuVerdict:
    """Why no GPU can be had now. ``blocks``: a pod would get a GPU and fail on it, so nothing is started."""

    failure: Failure
    blocks: bool = False


def make_gpu_need(accelerator: Accelerator | None, tensor_parallel: int) -> GpuNeed | None:
    """What an engine with this accelerator needs; None for engines of CPUs. A partition's memory is not compared."""
    request = make_gpu_request(accelerator, tensor_parallel)
    if request is None:
        return None
    known = find_accelerator(request.product, request.mig_profile)
    if known is None:
        return GpuNeed(request)
    return GpuNeed(request, known.sm, 0 if known.mig_profile else known.memory)


def decide_accelerator(need: GpuNeed, fleet: GpuFleet) -> GpuVerdict | None:
    """Why no GPU can be had now; None where a node has enough free ones. The first fact found speaks."""
    for policy in POLICIES:
        verdict = policy(need, fleet)
        if verdict is not None:
            return verdict
    return None


def of_product(need: GpuNeed, fleet: GpuFleet) -> tuple[GpuNode, ...]:
    """Nodes with the product."""
    return tuple(node for node in fleet.nodes if node.product == need.request.product)


def product_missing(need: GpuNeed, fleet: GpuFleet) -> GpuVerdict | None:
    """No node has the product."""
    if of_product(need, fleet):
        return None
    unlabelled = [node.name for node in fleet.nodes if not node.product]
    parts = [node for node in fleet.nodes if node.product.startswith(f"{need.request.product}{MIG_IN_PRODUCT}")]
    if parts:
        remedy = (
            f"node {parts[0].name} offers its partitions as product {parts[0].product} (MIG strategy single): set "
            "spec.engine.accelerator.product to that name and leave migProfile out"
        )
        return mismatch(need, f"no node has whole ones; {remedy}")
    if unlabelled:
        remedy = f"{some(unlabelled)} has GPUs but no label {LABEL_PRODUCT}: install GPU feature discovery there"
        return no_free(need, f"no node says that it has it; {remedy}")
    return no_free(need, f"no node has it; {describe_fleet(fleet)}")


def faulty_nodes(need: GpuNeed, fleet: GpuFleet) -> GpuVerdict | None:
    """All nodes with the product have something that an engine cannot run on."""
    nodes = of_product(need, fleet)
    faults = [f"node {node.name} {fault}" for node in nodes if (fault := find_fault(need, node))]
    if len(faults) < len(nodes):
        return None
    failure = Failure(Reason.ACCELERATOR_MISMATCH, f"{begin(need)}: {'; '.join(faults[:SHOWN])}.", True)
    return GpuVerdict(failure, blocks=True)


def find_fault(need: GpuNeed, node: GpuNode) -> str:
    """What of the node an engine cannot run on, with its remedy; '' where there is nothing."""
    wanted = f"{need.sm // 10}.{need.sm % 10}"
    if need.sm and node.compute and node.compute != wanted:
        return f"says compute capability {node.compute}, the product is known with {wanted}: its label is wrong"
    found = None if node.memory_mib is None else node.memory_mib * MIB
    if need.memory and found is not None and abs(found - need.memory) > need.memory * MEMORY_TOLERANCE:
        known = f"{need.memory / GIB:.0f} GiB"
        return f"says {found / GIB:.0f} GiB a GPU, the product is known with {known}: its label is wrong"
    if node.driver is not None and node.driver < least_driver(node.product):
        return (
            f"has driver {node.driver}, the container's CUDA 13.1 needs {least_driver(node.product)} at least and is "
            f"made for {CONTAINER_DRIVER}: update the driver"
        )
    return ""


def profile_missing(need: GpuNeed, fleet: GpuFleet) -> GpuVerdict | None:
    """Nodes with the product are partitioned otherwise."""
    nodes, resource = of_product(need, fleet), need.request.resource
    if any(node.offers.get(resource) for node in nodes):
        return None
    offers = sorted({name for node in nodes for name, count in node.offers.items() if count})
    if not offers:
        return no_free(need, f"{some([node.name for node in nodes])} has it but its device plugin offers none")
    there = ", ".join(offer.removeprefix(VENDOR) for offer in offers)
    wanted = resource.removeprefix(VENDOR)
    return mismatch(need, f"{some([node.name for node in nodes])} offers {there} and no {wanted}: partition it anew")


def all_taken(need: GpuNeed, fleet: GpuFleet) -> GpuVerdict | None:
    """No node that takes pods has enough of them free."""
    resource, count = need.request.resource, need.request.count
    nodes = [node for node in of_product(need, fleet) if not find_fault(need, node)]
    usable = [node for node in nodes if not node.closed]
    if any(fleet.free(node, resource) >= count for node in usable):
        return None
    closed = [f"{node.name} is {node.closed}" for node in nodes if node.closed]
    aside = f" ({'; '.join(closed[:SHOWN])})" if closed else ""
    total = sum(node.offers.get(resource, 0) for node in usable)
    free = sum(fleet.free(node, resource) for node in usable)
    if free == 0:
        return no_free(need, f"0 of {total} are free{aside}")
    most = max(usable, key=lambda node: fleet.free(node, resource))
    return no_free(need, f"{free} of {total} are free, at most {fleet.free(most, resource)} on one node{aside}")


POLICIES = (product_missing, faulty_nodes, profile_missing, all_taken)


def begin(need: GpuNeed) -> str:
    """The need in words: ``Needs 4 NVIDIA-H100-80GB-HBM3 of one node``."""
    return f"Needs {need.request}{' of one node' if need.request.count > 1 else ''}"


def no_free(need: GpuNeed, text: str) -> GpuVerdict:
    """NoFreeAccelerator: the pod waits for one."""
    return GpuVerdict(Failure(Reason.NO_FREE_ACCELERATOR, f"{begin(need)}, {text}.", True))


def mismatch(need: GpuNeed, text: str) -> GpuVerdict:
    """AcceleratorMismatch that another node may heal."""
    return GpuVerdict(Failure(Reason.ACCELERATOR_MISMATCH, f"{begin(need)}: {text}.", True))


def some(names: list[str]) -> str:
    """One node by name, and how many more."""
    return f"node {names[0]}" + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def describe_fleet(fleet: GpuFleet) -> str:
    """What is there: ``nodes have 4 NVIDIA-A100-SXM4-80GB (1 free)``."""
    products: dict[str, tuple[int, int]] = {}
    for node in fleet.nodes:
        for resource, count in node.offers.items():
            partition = "" if resource == RESOURCE_GPU else f" ({resource.removeprefix(RESOURCE_MIG)})"
            name = f"{node.product or 'GPUs of unknown product'}{partition}"
            total, free = products.get(name, (0, 0))
            products[name] = (total + count, free + (0 if node.closed else fleet.free(node, resource)))
    word = "free" if fleet.whole else "free at most"
    found = [f"{total} {name} ({free} {word})" for name, (total, free) in sorted(products.items()) if total]
    return f"nodes have {', '.join(found[:SHOWN])}" if found else "no node has a GPU"


def describe_need(need: GpuNeed, fleet: GpuFleet) -> str:
    """For the plan: ``needs 1 NVIDIA-H100-80GB-HBM3, 0 free``."""
    nodes = [node for node in of_product(need, fleet) if not node.closed]
    free = sum(fleet.free(node, need.request.resource) for node in nodes)
    return f"needs {need.request}, {free} free{'' if fleet.whole else ' at most'}"


def describe_drivers(need: GpuNeed, fleet: GpuFleet) -> str:
    """A note on drivers older than the container's own; '' where there is none."""
    old = sorted({n.driver for n in of_product(need, fleet) if n.driver is not None and n.driver < CONTAINER_DRIVER})
    if not old:
        return ""
    way = "CUDA's minor version compatibility" if old[0] >= CUDA_13_DRIVER else "the container's forward compatibility"
    return f"driver {old[0]} of its nodes is older than the container's {CONTAINER_DRIVER}: it relies on {way}"


def explain_unschedulable(trouble: Trouble | None, verdict: GpuVerdict | None) -> Failure | None:
    """A pod that the scheduler cannot place, in terms of GPUs; None where it is not for want of one."""
    if trouble is None or trouble.reason != "Unschedulable":
        return None
    if verdict is not None:
        return verdict.failure
    if f"Insufficient {VENDOR}" in trouble.message:
        text = trouble.message.rstrip(".")
        return Failure(Reason.NO_FREE_ACCELERATOR, f"No GPU is free for it now: {text}.", True)
    return None
