"""What a Job's containers read of the spec is what the spec says: the kubelet expands nothing in it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hotstart.operator.api import CompletionModel, Engine
from hotstart.operator.core.gpu_jobs import BuildSize
from hotstart.operator.core.job_manifests import make_build_job, make_bundle_job, make_inspect_job
from hotstart.operator.core.recipe import make_serving_options
from hotstart.operator.core.revision import Images

from tests.operator.doubles import SPEC, merge
from tests.operator.test_kept import DIGEST, RECIPE, make_engine

IMAGES = Images("triton:1", "builder:1", "triton-trtllm:1", "builder-trtllm:1")
URI = "s3://models/$(password)/a$$b/$(NOWHERE)/$"
STOPS = ["$(HOTSTART_CHECKPOINT)", "$$", "$("]
CHANGES = {
    "checkpoint": {"uri": URI, "secretName": "database", "revision": "$(password)"},
    "serving": {"stopStrings": STOPS},
}
MODEL = CompletionModel.from_api({"metadata": {"name": "m", "namespace": "team"}, "spec": merge(SPEC, CHANGES)})
MADE = (Engine.from_api(make_engine(RECIPE)), MODEL.spec.checkpoint, make_serving_options(MODEL.spec), IMAGES)
JOBS = {
    "inspect": make_inspect_job(MODEL, IMAGES, attempt=0),
    "build": make_build_job(*MADE, attempt=0, size=BuildSize(1, 1)),
    "bundle": make_bundle_job(*MADE, attempt=0, tokenizer_digest=DIGEST),
}


def expand(text: str, known: dict[str, str]) -> str:
    """As Kubernetes does it: third_party/forked/golang/expansion/expand.go."""
    out, at = "", 0
    while at < len(text):
        after, end = text[at + 1 : at + 2], text.find(")", at)
        if text[at] != "$" or not after:
            out, at = out + text[at], at + 1
        elif after == "(" and end >= 0:
            name = text[at + 2 : end]
            out, at = out + known.get(name, f"$({name})"), end + 1
        else:
            out, at = out + ("$" if after == "$" else f"${after}"), at + 2
    return out


def environment_of(container: dict[str, Any]) -> dict[str, str]:
    """As the kubelet makes it: what comes from Secrets first, then each value, expanded with all before it."""
    assert container["envFrom"] == [{"secretRef": {"name": "database"}}]
    known = {"password": "hunter2"}
    for entry in container["env"]:
        known[entry["name"]] = expand(entry["value"], known) if "value" in entry else "of the pod"
    return known


@pytest.mark.parametrize("name", JOBS)
def test_no_text_of_a_spec_reads_a_secret_or_loses_a_character(name: str) -> None:
    pod = JOBS[name]["spec"]["template"]["spec"]
    for container in (*pod.get("initContainers", ()), *pod["containers"]):
        environment = environment_of(container)
        checkpoint = json.loads(environment["HOTSTART_CHECKPOINT"])
        assert (checkpoint["uri"], checkpoint["revision"]) == (URI, "$(password)")
        assert json.loads(environment["HOTSTART_SERVING"])["stop_strings"] == STOPS
