"""A replica's pod, whole, beside what it was when someone last looked: on a CPU, on one GPU, a partition, four GPUs.

A wanted change: HOTSTART_UPDATE_GOLDEN=1 pytest tests/operator/test_gpu_pods.py
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from hotstart.operator.api import CompletionModel
from hotstart.operator.core.pod_manifest import make_pod
from hotstart.operator.core.revision import Images, make_assignment, make_target

from tests.helm.test_pod_security import violations
from tests.operator.doubles import SPEC
from tests.operator.gpu_models import A100, gpu_engine

GOLDEN = Path(__file__).parent / "golden"
IMAGES = Images("triton:1", "builder:1", "triton-trtllm:1", "builder-trtllm:1")
CASES = {
    "cpu-pod": None,
    "gpu-pod": {},
    "gpu-pod-tp4": {"tensorParallel": 4},
    "gpu-pod-mig": {"accelerator": {"product": A100, "migProfile": "3g.40gb"}},
}


def make_replica(engine: dict | None, **spec) -> dict:
    meta = {"name": "replit", "namespace": "team", "uid": "uid-1", "generation": 1}
    wanted = {**SPEC, **spec} if engine is None else {**SPEC, **spec, "engine": gpu_engine(**engine)}
    model = CompletionModel.from_api({"metadata": meta, "spec": wanted})
    target = make_target(model.spec, engine_key="k" * 64, engine_name="k" * 40, manifest_sha256="d" * 64)
    assignment = make_assignment(model.spec, target, model="team/replit", generation=1)
    return make_pod(model, target, assignment, IMAGES, slot=0, attempt=0, now=1.0)


class Plain(yaml.SafeDumper):
    def ignore_aliases(self, data):
        return True


@pytest.mark.parametrize("name", CASES)
def test_the_pod_is_as_the_golden_file_says(name):
    made = yaml.dump(make_replica(CASES[name]), Dumper=Plain, sort_keys=True, width=120)
    golden = GOLDEN / f"{name}.yaml"
    if os.environ.get("HOTSTART_UPDATE_GOLDEN") == "1":
        golden.write_text(made)
    assert made == golden.read_text()


@pytest.mark.parametrize("name", CASES)
def test_every_pod_passes_the_restricted_standard(name):
    pod = make_replica(CASES[name])
    assert violations(pod["spec"]) == []


def test_the_spec_s_own_resources_win_but_never_over_the_gpus():
    resources = {"requests": {"cpu": "6"}, "limits": {"memory": "24Gi"}}
    (triton,) = make_replica({"tensorParallel": 2}, serving={"resources": resources})["spec"]["containers"]
    assert triton["resources"] == {
        "requests": {"cpu": "6", "memory": "24Gi", "nvidia.com/gpu": "2"},
        "limits": {"memory": "24Gi", "nvidia.com/gpu": "2"},
    }


def test_shared_memory_grows_with_the_ranks():
    def room(engine: dict | None) -> dict:
        volumes = make_replica(engine)["spec"]["volumes"]
        return next(volume["emptyDir"] for volume in volumes if volume["name"] == "shm")

    assert room(None) == {"medium": "Memory"}
    assert room({}) == {"medium": "Memory", "sizeLimit": "2Gi"}
    assert room({"tensorParallel": 8}) == {"medium": "Memory", "sizeLimit": "9Gi"}
