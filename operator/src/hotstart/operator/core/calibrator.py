"""The container beside a build that measures the engine as a replica will run it: under a replica's limits. Pure.

The builder may take what its node has to spare; a replica may not, and a profile holds only for the CPUs that it was
measured with. So a sidecar of the build's pod waits, idle, until the engine is verified, and measures it. It is a
native sidecar: it ends with the build, and nothing that befalls it is the build's failure (docs/adr/0014).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from hotstart.operator.api import CompletionModelSpec
from hotstart.operator.api.model_spec import Runtime
from hotstart.operator.core.facts import CALIBRATOR

FOLDER = "/scratch/calibrator"  # where builder and calibrator find each other's files
REQUESTS = {"cpu": "10m", "memory": "32Mi"}  # it idles for most of the build


def replica_limits(spec: CompletionModelSpec) -> dict[str, str]:
    """Limits of a replica's Triton container, by resource; empty where it has none."""
    resources = spec.serving.resources
    limits = None if resources is None else resources.limits
    return {} if limits is None else {str(name): str(value) for name, value in limits.to_api().items()}


def with_calibrator(job: Mapping[str, Any], runtime: Runtime, limits: Mapping[str, str]) -> dict[str, Any]:
    """The build Job with the calibrator beside the builder, where replicas run on CPUs."""
    made: dict[str, Any] = copy.deepcopy(dict(job))
    if runtime is not Runtime.CTRANSLATE2:
        return made
    pod = made["spec"]["template"]["spec"]
    builder = next(container for container in pod["containers"] if container["name"] == "builder")
    place = {"name": "HOTSTART_CALIBRATOR", "value": FOLDER}
    builder["env"] = [*builder["env"], place]
    calibrator = {
        "name": CALIBRATOR,
        "image": builder["image"],
        "imagePullPolicy": builder["imagePullPolicy"],
        "command": ["hotstart-builder", "calibrate"],
        "restartPolicy": "Always",
        "env": [place],
        "resources": {"requests": REQUESTS, **({"limits": dict(limits)} if limits else {})},
        "securityContext": builder["securityContext"],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [mount for mount in builder["volumeMounts"] if mount["name"] in ("scratch", "tmp")],
    }
    pod["initContainers"] = [*pod.get("initContainers", []), calibrator]
    return made
