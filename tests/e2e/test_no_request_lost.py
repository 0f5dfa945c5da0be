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


def test_2000_requests_through_scale_down_and_a_change_of_the_pod_template(settled) -> None:
    settled.apply_model(replicas="2")
    settled.wait_ready(replicas=2)
    before = {pod["metadata"]["name"] for pod in settled.pods()}
    with Load(settled, rate=35, at_least=2000) as load:
        load.wait_for_answers()
        settled.kube.run("kubectl", "scale", "completionmodel", "tiny", "-n", settled.namespace, "--replicas=1")
        settled.wait(lambda: len(settled.pods()) == 1, "one pod is left")
        load.wait_for_answers()
        settled.apply_model(maxNewTokens="7")
        settled.wait(
            lambda: len(pods := settled.pods()) == 1 and pods[0]["metadata"]["name"] not in before,
            "the last pod was replaced",
        )
        settled.wait_ready()
        load.wait_for_answers()
    load.assert_none_lost()


def test_the_leader_killed_and_serving_is_not_touched(settled) -> None:
    settled.apply_model()
    settled.wait_ready()
    pods = [pod["metadata"]["uid"] for pod in settled.pods()]
    first = leader(settled.kube).split("_")[0]
    operator = settled.kube.get("pods", first, stage.SYSTEM)
    with Load(settled, rate=20) as load:
        load.wait_for_answers()
        os.kill(find_process(operator["metadata"]["uid"], OPERATOR), signal.SIGKILL)
        settled.wait(
            lambda: leader(settled.kube).split("_")[0] not in ("", first), "the other replica leads", patience=20
        )
        load.wait_for_answers()
    load.assert_none_lost()
    assert [pod["metadata"]["uid"] for pod in settled.pods()] == pods
    settled.kube.run("kubectl", "scale", "completionmodel", "tiny", "-n", settled.namespace, "--replicas=2")
    settled.wait_ready(replicas=2)


def written_by_operator(tenant) -> dict[str, str]:
    """When the operator last changed each object of the namespace, as the API server recorded it."""
    kinds = ("engines", "services", "poddisruptionbudgets", "jobs", "configmaps", "pods")
    items = [item for kind in kinds for item in tenant.kube.items(kind, tenant.namespace)]
    return {
        f"{item['kind']}/{item['metadata']['name']}": max(entry["time"] for entry in entries)
        for item in items
        if (entries := [e for e in item["metadata"]["managedFields"] if e["manager"] == "hotstart-operator"])
    }


def test_a_new_leader_writes_nothing_where_all_is_well(settled) -> None:
    settled.apply_model()
    settled.wait_ready()
    before, first = written_by_operator(settled), leader(settled.kube)
    assert {name.split("/")[0] for name in before} >= {"Engine", "Service", "PodDisruptionBudget", "Pod"}
    settled.kube.run("kubectl", "delete", "pod", first.split("_")[0], "-n", stage.SYSTEM, "--grace-period=0", "--force")
    settled.wait(lambda: leader(settled.kube) not in ("", first), "another replica leads")
    settled.kube.run("kubectl", "scale", "completionmodel", "tiny", "-n", settled.namespace, "--replicas=2")
    settled.wait_ready(replicas=2)  # so the new leader has reconciled the model
    after = written_by_operator(settled)
    assert {name: after[name] for name in before} == before
