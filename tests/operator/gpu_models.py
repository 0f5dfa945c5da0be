"""A model on GPUs as tests apply it, and what an inspection says of replit-code-v1_5-3b."""

from __future__ import annotations

from hotstart.operator.core.gpu_fleet import GpuFleet, make_gpu_node, make_gpu_pod, sum_of

from tests.operator.doubles import NAMESPACE
from tests.operator.world import World

URI = "s3://models/replit/"
H100 = "NVIDIA-H100-80GB-HBM3"
A100 = "NVIDIA-A100-SXM4-80GB"

#: A made-up digest, and the sizes in replit-code-v1_5-3b's own config.json.
REPLIT = {
    "digest": "ab" * 32,
    "tokenizerDigest": "cd" * 32,
    "architecture": "MPTForCausalLM",
    "format": "safetensors",
    "parameters": 3_322_423_296,
    "embeddingParameters": 32768 * 3072,
    "sizeBytes": 6_644_846_592,
    "files": 3,
    "facts": {
        "architecture": "MPTForCausalLM",
        "layers": 32,
        "hidden": 3072,
        "intermediate": 12288,
        "heads": 24,
        "kvHeads": 8,
        "headDim": 128,
        "vocab": 32768,
        "contextLength": 4096,
        "alibiBiasMax": 8.0,
    },
}


def gpu_engine(product: str = H100, **changes) -> dict:
    """`spec.engine` for TensorRT-LLM."""
    limits = {"batchSize": 64, "inputTokens": 3840, "sequenceTokens": 4096}
    engine = {"runtime": "tensorrt_llm", "quantization": "none", "limits": limits}
    return {**engine, "accelerator": {"product": product}, **changes}


def apply_replit(world, inspection: dict | None = None, name: str = "m", **changes) -> None:
    """The model, whose inspection says what is known of replit-code."""
    world.inspections[URI] = REPLIT if inspection is None else inspection
    engine = {"engine": gpu_engine(), **changes}
    world.apply(name, checkpoint={"uri": URI, "secretName": "reader"}, **engine)


def gpu_node(
    name: str, product: str = H100, gpus: int = 1, *, resources: dict | None = None, taints=(), ready=True, **labels
) -> dict:
    """A node as the GPU operator leaves it. ``labels`` are of nvidia.com, with _ for - and . in their names."""
    said = {"product": product, "count": str(gpus)}
    return {
        "metadata": {
            "name": name,
            "labels": {
                **{f"nvidia.com/gpu.{label}": value for label, value in said.items()},
                **{LABELS[label]: value for label, value in labels.items()},
            },
        },
        "spec": {"taints": list(taints)} if taints else {},
        "status": {
            "allocatable": {"cpu": "64", "memory": "512Gi", "nvidia.com/gpu": str(gpus), **(resources or {})},
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }


LABELS = {
    "memory": "nvidia.com/gpu.memory",
    "compute_major": "nvidia.com/gpu.compute.major",
    "compute_minor": "nvidia.com/gpu.compute.minor",
    "driver": "nvidia.com/cuda.driver-version.major",
    "driver_old": "nvidia.com/cuda.driver.major",
    "strategy": "nvidia.com/mig.strategy",
}


class GpuWorld(World):
    """A world whose scheduler places pods that ask for GPUs only where there are some."""

    def _move_pod(self, pod: dict) -> None:
        if pod["metadata"]["namespace"] != NAMESPACE:
            return  # somebody else's
        asked = sum_of(pod["spec"]["containers"])
        if asked and not pod["spec"].get("nodeName"):
            node = self._find_node(pod, asked)
            if node is None:
                self._set(pod, {"phase": "Pending", "conditions": [self._unschedulable(pod, asked)]})
                return
            self.cluster.change("Pod", pod["metadata"]["name"], {"spec": {"nodeName": node}, "status": None})
            pod = next(p for p in self.cluster.all("Pod") if p["metadata"]["name"] == pod["metadata"]["name"])
        super()._move_pod(pod)

    def _find_node(self, pod: dict, asked: dict[str, int]) -> str | None:
        for node in self.cluster.all("Node"):
            labels = {**node["metadata"].get("labels", {}), "kubernetes.io/arch": "amd64"}
            fits = pod["spec"].get("nodeSelector", {}).items() <= labels.items()
            fact = make_gpu_node(node)
            holders = tuple(f for p in self.cluster.all("Pod") if (f := make_gpu_pod(p)) is not None)
            free = GpuFleet((fact,), holders) if fact else None
            if fits and free and all(free.free(fact, name) >= count for name, count in asked.items()):
                return node["metadata"]["name"]
        return None

    def _unschedulable(self, pod: dict, asked: dict[str, int]) -> dict:
        nodes = len(self.cluster.all("Node"))
        text = f"0/{nodes} nodes are available: {nodes} Insufficient {next(iter(asked))}."
        since = pod["metadata"]["creationTimestamp"]
        said = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": text}
        return {**said, "lastTransitionTime": since}
