"""A checkpoint on a claim: every container that reads it has it read-only, and no other Job has it."""

from __future__ import annotations

from typing import Any

import pytest
from hotstart.engines.checkpoints.places import FolderPlace, parse_uri
from hotstart.exchange.names import CHECKPOINT_MOUNT
from hotstart.operator.api.model_spec import Checkpoint
from hotstart.operator.core.job_manifests import mount_claim

from tests.operator.test_gpu_jobs import build_job

MOUNT = {"name": "checkpoint", "mountPath": CHECKPOINT_MOUNT, "readOnly": True}


def containers_of(job: dict[str, Any]) -> list[dict[str, Any]]:
    pod = job["spec"]["template"]["spec"]
    return [*pod.get("initContainers", ()), *pod["containers"]]


@pytest.mark.parametrize("uri", ["pvc://trained-models/code/run-17", "pvc://trained-models"])
def test_all_containers_of_a_build_mount_the_claim_read_only(uri: str) -> None:
    job = mount_claim(build_job(), Checkpoint(uri=uri))
    volumes = [v for v in job["spec"]["template"]["spec"]["volumes"] if v["name"] == "checkpoint"]
    claim = {"claimName": "trained-models", "readOnly": True}
    assert volumes == [{"name": "checkpoint", "persistentVolumeClaim": claim}]
    containers = containers_of(job)
    assert len(containers) > 1, "a build with a GPU converts in a container of its own"
    for container in containers:
        assert [mount for mount in container["volumeMounts"] if mount["name"] == "checkpoint"] == [MOUNT]


def test_a_build_from_a_store_mounts_no_claim() -> None:
    job = mount_claim(build_job(), Checkpoint(uri="s3://models/code/"))
    assert not any("persistentVolumeClaim" in volume for volume in job["spec"]["template"]["spec"]["volumes"])
    assert all(mount["name"] != "checkpoint" for c in containers_of(job) for mount in c["volumeMounts"])


def test_the_builder_looks_for_the_claim_where_the_job_mounts_it() -> None:
    place = parse_uri("pvc://trained-models/code/run-17")
    assert isinstance(place, FolderPlace)
    assert str(place.folder) == f"{CHECKPOINT_MOUNT}/code/run-17"
