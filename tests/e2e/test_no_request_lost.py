"""Nothing that the operator does costs a request: scale-down, a new pod template, a dead leader."""

from __future__ import annotations

import os
import signal

import pytest
from hotstart.demo import stage

from tests.e2e.load import Load
from tests.support.processes import find_process

pytestmark = pytest.mark.e2e


OPERATOR = "hotstart-operat"  # the kernel keeps 15 characters of a name


def leader(kube) -> str:
    lease = kube.get("leases", "hotstart-operator", stage.SYSTEM) or {}
    return lease.get("spec", {}).get("holderIdentity") or ""


def written_by_operator(tenant) -> dict[str, str]:
    """When the operator last changed each object of the namespace, as the API server recorded it."""
    kinds = ("engines", "services", "poddisruptionbudgets", "jobs", "configmaps", "pods")
    items = [item for kind in kinds for item in tenant.kube.items(kind, tenant.namespace)]
    return {
        f"{item['kind']}/{item['metadata']['name']}": max(entry["time"] for entry in entries)
        for item in items
        if (entries := [e for e in item["metadata"]["managedFields"] if e["manager"] == "hotstart-operator"])
    }


def scale_down(tenant) -> None:
    tenant.scale_model(1)
    tenant.wait(lambda: len(tenant.pods()) == 1, "one pod is left")


def change_the_pod_template(tenant) -> None:
    before = {pod["metadata"]["name"] for pod in tenant.pods()}
    tenant.apply_model(maxNewTokens="7")
    tenant.wait(
        lambda: len(pods := tenant.pods()) == 1 and pods[0]["metadata"]["name"] not in before,
        "the last pod was replaced",
    )
    tenant.wait_ready()


def kill_the_leader(tenant) -> None:
    first = leader(tenant.kube).split("_")[0]
    operator = tenant.kube.get("pods", first, stage.SYSTEM)
    os.kill(find_process(operator["metadata"]["uid"], OPERATOR), signal.SIGKILL)
    tenant.wait(lambda: leader(tenant.kube).split("_")[0] not in ("", first), "the other replica leads", patience=20)


def test_2000_requests_through_scale_down_a_change_of_the_pod_template_and_a_killed_leader(settled) -> None:
    settled.apply_model(replicas="2")
    settled.wait_ready(replicas=2)
    with Load(settled, rate=35, at_least=2000) as load:
        load.wait_for_answers()
        scale_down(settled)
        load.wait_for_answers()
        change_the_pod_template(settled)
        load.wait_for_answers()
        pods, written = [pod["metadata"]["uid"] for pod in settled.pods()], written_by_operator(settled)
        assert {name.split("/")[0] for name in written} >= {"Engine", "Service", "PodDisruptionBudget", "Pod"}
        kill_the_leader(settled)
        load.wait_for_answers()
        assert [pod["metadata"]["uid"] for pod in settled.pods()] == pods
        settled.scale_model(2)
        settled.wait_ready(replicas=2)  # so the new leader has reconciled the model
        after = written_by_operator(settled)
        assert {name: after[name] for name in written} == written, "where all is well it writes nothing"
    load.assert_none_lost()
