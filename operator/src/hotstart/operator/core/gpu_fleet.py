"""Which GPUs there are: nodes and the pods on them as facts. Pure.

What is read of a node are its labels (GPU feature discovery, which the GPU operator installs), its allocatable
resources (the device plugin's), its taints and its readiness; of a pod what it asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hotstart.operator.core.facts import Object
from hotstart.operator.core.gpu_request import LABEL_MIG_STRATEGY, LABEL_PRODUCT, RESOURCE_GPU, RESOURCE_MIG

LABEL_MEMORY = "nvidia.com/gpu.memory"  # MiB, of the whole GPU
LABEL_COMPUTE = ("nvidia.com/gpu.compute.major", "nvidia.com/gpu.compute.minor")
LABELS_DRIVER = ("nvidia.com/cuda.driver-version.major", "nvidia.com/cuda.driver.major")  # new name, old name


@dataclass(frozen=True)
class GpuNode:
    """One node with GPUs. ``offers`` is what is allocatable by resource; ``closed`` is why no new pod lands there."""

    name: str
    product: str
    offers: Mapping[str, int]
    strategy: str = ""
    memory_mib: int | None = None
    compute: str = ""
    driver: int | None = None
    closed: str = ""


@dataclass(frozen=True)
class GpuPod:
    """A pod on a node that holds GPUs."""

    uid: str
    node: str
    holds: Mapping[str, int]


@dataclass(frozen=True)
class GpuFleet:
    """All that is known of GPUs. ``whole``: the pods of all namespaces are seen, so that free is free."""

    nodes: tuple[GpuNode, ...] = ()
    pods: tuple[GpuPod, ...] = ()
    whole: bool = True

    def free(self, node: GpuNode, resource: str) -> int:
        """Units of a resource that no pod holds."""
        held = sum(pod.holds.get(resource, 0) for pod in self.pods if pod.node == node.name)
        return max(0, node.offers.get(resource, 0) - held)


def make_gpu_node(node: Object) -> GpuNode | None:
    """The facts of a node; None where it has no GPUs."""
    meta, spec, status = node["metadata"], node.get("spec", {}), node.get("status", {})
    labels, allocatable = meta.get("labels", {}), status.get("allocatable", {})
    offers = {name: number_of(value) for name, value in allocatable.items() if is_gpu(name)}
    if not any(offers.values()) and LABEL_PRODUCT not in labels:
        return None
    driver = next((labels[label] for label in LABELS_DRIVER if label in labels), "")
    memory = labels.get(LABEL_MEMORY, "")
    compute = ".".join(labels[label] for label in LABEL_COMPUTE if label in labels)
    return GpuNode(
        name=meta["name"],
        product=labels.get(LABEL_PRODUCT, ""),
        offers=offers,
        strategy=labels.get(LABEL_MIG_STRATEGY, ""),
        memory_mib=int(memory) if memory.isdigit() else None,
        compute=compute if "." in compute else "",
        driver=int(driver) if driver.isdigit() else None,
        closed=find_closed(spec, status),
    )


def is_gpu(resource: str) -> bool:
    """Whether a resource is GPUs or partitions of them."""
    return resource == RESOURCE_GPU or resource.startswith(RESOURCE_MIG)


def number_of(value: object) -> int:
    """A count of an extended resource; they are whole."""
    text = str(value)
    return int(text) if text.isdigit() else 0


def find_closed(spec: Object, status: Object) -> str:
    """Why no new pod of ours lands on the node, or ''."""
    if spec.get("unschedulable"):
        return "cordoned"
    ready = next((c for c in status.get("conditions", ()) if c.get("type") == "Ready"), {"status": "True"})
    if ready.get("status") != "True":
        return "not ready"
    for taint in spec.get("taints", ()):
        if taint.get("effect") in ("NoSchedule", "NoExecute") and taint.get("key") != RESOURCE_GPU:
            return f"tainted {taint.get('key')}"
    return ""


def make_gpu_pod(pod: Object) -> GpuPod | None:
    """What a pod holds; None where it holds no GPU, has no node yet, or has ended."""
    spec, meta = pod.get("spec", {}), pod["metadata"]
    if not spec.get("nodeName") or pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
        return None
    own = sum_of(spec.get("containers", ()))
    sidecars = [c for c in spec.get("initContainers", ()) if c.get("restartPolicy") == "Always"]
    first = [sum_of([c]) for c in spec.get("initContainers", ()) if c.get("restartPolicy") != "Always"]
    running = add(own, sum_of(sidecars))
    names = {*running, *(name for counts in first for name in counts)}
    holds = {name: max([running.get(name, 0), *(counts.get(name, 0) for counts in first)]) for name in names}
    holds = {name: count for name, count in holds.items() if count}
    return GpuPod(meta.get("uid", ""), spec["nodeName"], holds) if holds else None


def sum_of(containers: Iterable[Object]) -> dict[str, int]:
    """GPUs of all containers; the limit of an extended resource is its request."""
    total: dict[str, int] = {}
    for container in containers:
        said = container.get("resources", {})
        asked = {**said.get("limits", {}), **said.get("requests", {})}
        total = add(total, {name: number_of(value) for name, value in asked.items() if is_gpu(name)})
    return total


def add(left: Mapping[str, int], right: Mapping[str, int]) -> dict[str, int]:
    """Counts added up."""
    return {name: left.get(name, 0) + right.get(name, 0) for name in {*left, *right}}
