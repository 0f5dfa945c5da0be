"""The build Job with a GPU, whole, beside what it was when someone last looked; and what a Job's end is read as.

A wanted change: HOTSTART_UPDATE_GOLDEN=1 pytest tests/operator/test_gpu_jobs.py
"""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import yaml
from hotstart.engines.builder.settings import make_build_settings
from hotstart.engines.key import key_inputs, make_key
from hotstart.operator.api import CompletionModel, Engine
from hotstart.operator.core.backoff import BUILD_KILLED
from hotstart.operator.core.facts import make_job_facts, make_pod_facts
from hotstart.operator.core.job_manifests import make_build_job, make_inspect_job
from hotstart.operator.core.jobs import Failed, decide_outcome
from hotstart.operator.core.model import ModelView, decide_model
from hotstart.operator.core.recipe import find_wanted_engine, make_inspect_hash, make_serving_options
from hotstart.operator.core.revision import Images

from tests.helm.test_pod_security import violations
from tests.operator.doubles import SPEC
from tests.operator.gpu_models import A100, gpu_engine
from tests.operator.test_gpu_recipe import checkpoint_of

GOLDEN = Path(__file__).parent / "golden"
IMAGES = Images("triton:1", "builder:1", "triton-trtllm:1", "builder-trtllm:1")
NOW = 1_800_000_000.0


def model_of(**engine) -> CompletionModel:
    status = {"checkpoint": checkpoint_of(sizeBytes=6_644_846_592).to_api()}
    spec = {**SPEC, "engine": gpu_engine(**engine)}
    meta = {"name": "replit", "namespace": "team", "uid": "uid-1", "generation": 1}
    return CompletionModel.from_api({"metadata": meta, "spec": spec, "status": status})


def build_job(**engine) -> dict:
    """The Job as the operator makes it, by way of the Engine that it makes."""
    model = model_of(**engine)
    wanted = find_wanted_engine(model.spec, model.status.checkpoint)
    view = ModelView(model=pinned(model), images=IMAGES, now=NOW)
    body = next(write.body for write in decide_model(view).writes if write.body["kind"] == "Engine")
    made = Engine.from_api({**body, "metadata": {**body["metadata"], "uid": "uid-2"}})
    serving = make_serving_options(model.spec)
    return make_build_job(made, model.spec.checkpoint, serving, IMAGES, attempt=0, size=wanted.size)


def pinned(model: CompletionModel) -> CompletionModel:
    """With its checkpoint inspected for this spec."""
    checkpoint = model.status.checkpoint.model_copy(
        update={"spec_hash": make_inspect_hash(model.spec), "tokenizer_digest": "cd" * 32}
    )
    return model.model_copy(update={"status": model.status.model_copy(update={"checkpoint": checkpoint})})


CASES = {
    "gpu-build": {},
    "gpu-build-tp4": {"tensorParallel": 4},
    "gpu-build-mig": {"accelerator": {"product": A100, "migProfile": "3g.40gb"}, "quantization": "int8_weight_only"},
}


class Plain(yaml.SafeDumper):
    def ignore_aliases(self, data):
        return True


def as_text(job: dict) -> str:
    """The Job as YAML, but for what other tests hold: recipe, key and estimates."""
    job = copy.deepcopy(job)
    key = next(e["value"] for e in containers_of(job)["builder"]["env"] if e["name"] == "HOTSTART_ENGINE_KEY")
    for container in containers_of(job).values():
        container["resources"]["requests"] |= {"memory": "MEMORY", "ephemeral-storage": "SCRATCH"}
        container["env"] = [
            {**entry, "value": "RECIPE"} if entry["name"] == "HOTSTART_RECIPE" else entry for entry in container["env"]
        ]
    text = yaml.dump(job, Dumper=Plain, sort_keys=True, width=120)
    return text.replace(key, "KEY").replace(key[:40], "KEY40").replace(key[:24], "KEY24")


@pytest.mark.parametrize("name", CASES)
def test_the_job_is_what_the_golden_file_says(name):
    made = as_text(build_job(**CASES[name]))
    golden = GOLDEN / f"{name}.yaml"
    if os.environ.get("HOTSTART_UPDATE_GOLDEN") == "1":
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(made, encoding="utf-8")
    assert made == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CASES)
def test_the_pod_is_restricted_and_has_no_token(name):
    pod = build_job(**CASES[name])["spec"]["template"]["spec"]
    assert violations(pod) == []
    assert pod["automountServiceAccountToken"] is False


def containers_of(job: dict) -> dict[str, dict]:
    pod = job["spec"]["template"]["spec"]
    return {container["name"]: container for container in (*pod["initContainers"], *pod["containers"])}


def test_only_the_builder_has_a_gpu():
    containers = containers_of(build_job(tensorParallel=4))
    assert containers["builder"]["resources"]["limits"] == {"nvidia.com/gpu": "4"}
    assert "nvidia.com" not in str(containers["convert"])
    assert containers["convert"]["command"] == ["hotstart-builder", "convert"]
    mounts = [mount["name"] for mount in containers["convert"]["volumeMounts"]]
    assert "exchange-keys" in mounts and "shm" not in mounts, "it answers the operator before the builder does"
    assert containers["convert"]["env"] == containers["builder"]["env"]
    assert containers["convert"]["image"] == containers["builder"]["image"] == "builder-trtllm:1"


def test_both_programs_read_what_the_job_says(tmp_path):
    """The builder's own reader of its environment takes what the operator writes."""
    for name in ("convert", "builder"):
        container = containers_of(build_job(tensorParallel=2))[name]
        environment = {entry["name"]: entry.get("value", "uid") for entry in container["env"]}
        moved = {key: value.replace("/scratch", str(tmp_path)) for key, value in environment.items()}
        settings = make_build_settings({**moved, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"})
        assert settings.converted == tmp_path / "converted"
        assert settings.recipe.tensor_parallel == 2
        assert make_key(key_inputs(settings.checkpoint_digest, settings.recipe)) == settings.engine_key


def test_inspection_needs_no_gpu_and_no_large_image():
    job = make_inspect_job(model_of(), IMAGES, attempt=0)
    assert "nvidia.com" not in str(job)
    assert job["spec"]["template"]["spec"]["containers"][0]["image"] == "builder:1"


def test_a_killed_build_is_remembered_while_two_more_run_as_long_as_they_may():
    spec = build_job()["spec"]
    assert spec["ttlSecondsAfterFinished"] > 2 * (spec["activeDeadlineSeconds"] + BUILD_KILLED.cap)


def test_a_partition_is_asked_for_by_name():
    pod = build_job(**CASES["gpu-build-mig"])["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/mig-3g.40gb": "1"}
    assert pod["nodeSelector"] == {
        "kubernetes.io/arch": "amd64",
        "nvidia.com/gpu.product": A100,
        "nvidia.com/mig.strategy": "mixed",
    }


def test_a_quantized_engine_asks_for_less():
    whole, small = build_job(), build_job(quantization="int8_weight_only")
    for resource in ("memory", "ephemeral-storage"):
        asked = [int(containers_of(job)["builder"]["resources"]["requests"][resource][:-2]) for job in (whole, small)]
        assert asked[0] > asked[1] > 1024


def ended_job(**status) -> dict:
    """A Job whose pod stands as ``status`` says."""
    owner = {"kind": "Job", "name": "build-1", "uid": "j", "controller": True}
    template = build_job()["spec"]["template"]
    meta = {**template["metadata"], "name": "build-1-x", "uid": "p", "ownerReferences": [owner]}
    pod = {"metadata": meta, "spec": {**template["spec"], "nodeName": "gpu-1"}, "status": {"phase": "Failed", **status}}
    job = {"metadata": {"name": "build-1", "namespace": "team", "uid": "j"}, "status": {}}
    return make_job_facts(job, [pod])


def failure_of(job):
    found = decide_outcome(job, secret="", fallback="BuildFailed", what="the build of the engine", now=NOW)
    assert isinstance(found, Failed)
    return found.failure


def ended(name: str, code: int, reason: str, message: str = "") -> dict:
    return {"name": name, "state": {"terminated": {"exitCode": code, "reason": reason, "message": message}}}


def test_killed_for_memory_is_told_with_what_it_had():
    found = failure_of(ended_job(containerStatuses=[ended("builder", 137, "OOMKilled", "line of log")]))
    assert (found.reason, found.retryable) == ("OutOfMemory", True)
    memory = containers_of(build_job())["builder"]["resources"]["requests"]["memory"]
    assert f"container builder, which had {memory}" in found.message and "more memory" in found.message


def test_killed_without_a_reason_is_most_likely_memory():
    found = failure_of(ended_job(containerStatuses=[ended("builder", 137, "Error")]))
    assert found.reason == "OutOfMemory" and "most likely" in found.message


def test_the_conversion_too_is_killed_for_memory():
    found = failure_of(ended_job(initContainerStatuses=[ended("convert", 137, "OOMKilled")]))
    assert found.reason == "OutOfMemory" and "container convert" in found.message


def test_a_failure_with_a_report_is_no_want_of_memory():
    said = '{"failure": {"reason": "BuildFailed", "message": "No.", "retryable": true}}'
    assert failure_of(ended_job(containerStatuses=[ended("builder", 1, "Error", said)])).reason == "BuildFailed"
    assert failure_of(ended_job(containerStatuses=[ended("builder", 1, "Error", "Traceback")])).reason == "BuildFailed"


EVICTIONS = [
    ("The node was low on resource: ephemeral-storage. Threshold quantity: 10Gi", "DiskFull"),
    ('Usage of EmptyDir volume "scratch" exceeds the limit "20Gi".', "DiskFull"),
    ("The node had condition: [DiskPressure].", "DiskFull"),
    ("The node was low on resource: memory. Threshold quantity: 100Mi", "OutOfMemory"),
    ("The node was low on resource: pids.", "BuildFailed"),
]


@pytest.mark.parametrize(("message", "reason"), EVICTIONS)
def test_an_eviction_says_what_ran_out(message, reason):
    killed = [ended("builder", 137, "Error")]
    found = failure_of(ended_job(reason="Evicted", message=message, containerStatuses=killed))
    assert (found.reason, found.retryable) == (reason, True)
    assert "gpu-1" in found.message and message.rstrip(".") in found.message


def test_how_a_sidecar_ended_is_not_how_the_build_ended():
    template = build_job()["spec"]["template"]["spec"]
    sidecar = {"name": "beside", "restartPolicy": "Always"}
    for phase, code, reason in (("Succeeded", 0, "Completed"), ("Failed", 64, "Error")):
        statuses = {"phase": phase, "containerStatuses": [ended("builder", code, reason)]}
        pod = make_pod_facts(
            {
                "metadata": {"name": "p"},
                "spec": {**template, "initContainers": [*template["initContainers"], sidecar]},
                "status": {**statuses, "initContainerStatuses": [ended("beside", 137, "Error")]},
            }
        )
        assert (pod.exit.container, pod.exit.code) == ("builder", code)
