"""What a pod asks of its node for a GPU: extended resource, node selector, tolerations. Pure.

Names are those of NVIDIA's device plugin (`nvidia.com/gpu`, `nvidia.com/mig-1g.10gb` under the MIG strategy "mixed")
and of GPU feature discovery, whose labels the GPU operator installs. Under the strategy "single" a partition goes by
`nvidia.com/gpu` and by another product name, so that one cannot tell what one gets: partitions are asked for by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hotstart.operator.api.model_spec import Accelerator

RESOURCE_GPU = "nvidia.com/gpu"
RESOURCE_MIG = "nvidia.com/mig-"
LABEL_PRODUCT = "nvidia.com/gpu.product"
LABEL_MIG_STRATEGY = "nvidia.com/mig.strategy"
MIXED = "mixed"
SHM_GIB = 1

#: Nodes with GPUs are often kept free of other pods by this taint; every effect of it is tolerated.
TOLERATIONS: tuple[dict[str, Any], ...] = ({"key": RESOURCE_GPU, "operator": "Exists"},)


@dataclass(frozen=True)
class GpuRequest:
    """``count`` GPUs of one node, or one partition. ``mig_profile`` '' is the whole GPU."""

    product: str
    mig_profile: str
    count: int

    @property
    def resource(self) -> str:
        """The extended resource that the container asks for."""
        return f"{RESOURCE_MIG}{self.mig_profile}" if self.mig_profile else RESOURCE_GPU

    @property
    def resources(self) -> dict[str, str]:
        """The request, which for an extended resource is also the limit."""
        return {self.resource: str(self.count)}

    @property
    def node_selector(self) -> dict[str, str]:
        """Only nodes with this product; a partition only where partitions go by their names."""
        strategy = {LABEL_MIG_STRATEGY: MIXED} if self.mig_profile else {}
        return {LABEL_PRODUCT: self.product, **strategy}

    @property
    def tolerations(self) -> list[dict[str, Any]]:
        """The taint that keeps other pods away."""
        return [dict(toleration) for toleration in TOLERATIONS]

    @property
    def name(self) -> str:
        """The GPU in words, such as ``NVIDIA-H100-80GB-HBM3`` or ``NVIDIA-H100-80GB-HBM3 (1g.10gb)``."""
        return f"{self.product} ({self.mig_profile})" if self.mig_profile else self.product

    @property
    def shared_memory(self) -> str:
        """Size of /dev/shm: of Triton's Python backend, and as much again for each rank's NCCL."""
        return f"{SHM_GIB * (1 + self.count)}Gi"

    def __str__(self) -> str:
        return f"{self.count} {self.name}"


def make_gpu_request(accelerator: Accelerator | None, tensor_parallel: int) -> GpuRequest | None:
    """The request of an engine's build pod and of each of its replicas; None for engines of CPUs."""
    if accelerator is None:
        return None
    return GpuRequest(accelerator.product, accelerator.mig_profile or "", tensor_parallel)
