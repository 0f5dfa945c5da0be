"""What a build Job with a GPU has beyond one of a CPU. Pure.

Two containers, one after the other, on one scratch disk: `convert` downloads and converts the checkpoint and sees no
GPU (docs/adr/0024); `builder` compiles, verifies, calibrates and uploads, and has them. The scheduler reserves the GPUs
for the whole pod, as it must: an engine is built on the node that has them, and the converted checkpoint is too large
to move.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

from hotstart.engines.accelerators import MIB
from hotstart.exchange.names import EXIT_TERMINAL, STEP_CONVERT
from hotstart.operator.core.gpu_request import GpuRequest

CONVERTED = "/scratch/converted"  # where the conversion leaves what the build takes over
CPU = "2"  # TensorRT compiles on few threads; the rest of the work is the GPU's
MORE_MEMORY = 1.5  # times what the attempt before had


@dataclass(frozen=True)
class BuildSize:
    """What a build needs of its node, estimated (`engines/build_estimate.py`); bytes. ``seconds`` None: unknown."""

    memory: int
    scratch: int
    seconds: float | None = None

    def after(self, killed: int) -> BuildSize:
        """What to ask for once so many attempts in a row were killed for memory."""
        return replace(self, memory=int(self.memory * MORE_MEMORY**killed))


def quantity(size: int) -> str:
    """Bytes as Kubernetes takes them, in whole MiB."""
    return f"{-(-size // MIB)}Mi"


def with_gpus(job: dict[str, Any], request: GpuRequest, size: BuildSize, *, architecture: str) -> dict[str, Any]:
    """The Job with the conversion before it, its GPUs, and requests for what the build takes."""
    job = copy.deepcopy(job)
    pod = job["spec"]["template"]["spec"]
    builder = next(container for container in pod["containers"] if container["name"] == "builder")
    builder["env"].append({"name": "HOTSTART_CONVERTED", "value": CONVERTED})
    needs = {"cpu": CPU, "memory": quantity(size.memory), "ephemeral-storage": quantity(size.scratch)}
    pod["initContainers"] = [*pod.get("initContainers", []), make_convert_container(builder, needs)]
    builder["resources"] = {"requests": needs, "limits": request.resources}
    builder["volumeMounts"].append({"name": "shm", "mountPath": "/dev/shm"})
    shared = {"medium": "Memory", "sizeLimit": request.shared_memory}  # a replica's: the engine is calibrated in Triton
    pod["volumes"].append({"name": "shm", "emptyDir": shared})
    pod["nodeSelector"] = {"kubernetes.io/arch": architecture, **request.node_selector}
    pod["tolerations"] = request.tolerations
    codes = {"containerName": STEP_CONVERT, "operator": "In", "values": [EXIT_TERMINAL]}
    job["spec"]["podFailurePolicy"]["rules"].append({"action": "FailJob", "onExitCodes": codes})
    return job


def make_convert_container(builder: dict[str, Any], needs: dict[str, str]) -> dict[str, Any]:
    """The conversion: all that the builder has, and no GPU. It answers the operator on the same port, before it."""
    container = copy.deepcopy(builder)
    command = ["hotstart-builder", STEP_CONVERT]
    return {**container, "name": STEP_CONVERT, "command": command, "resources": {"requests": needs}}
