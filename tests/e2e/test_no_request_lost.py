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
    lease = kube.get("lease", "hotstart-operator", "-n", stage.SYSTEM) or {}
    return lease.get("spec", {}).get("holderIdentity") or ""


def test_2000_requests_through_scale_down_and_a_change_of_the_pod_template(tenant) -> None:
    tenant.apply_model(replicas="2")
    tenant.wait_ready(replicas=2)
    before = {pod["metadata"]["name"] for pod in tenant.pods()}
    with Load(tenant, rate=25, at_least=2000) as load:
        load.wait_for_answers()
        tenant.kube.run("kubectl", "scale", "completionmodel", "tiny", "-n", tenant.namespace, "--replicas=1")
        tenant.wait(lambda: len(tenant.pods()) == 1, "one pod is left")
        load.wait_for_answers()
        tenant.apply_model(maxNewTokens="7")
        tenant.wait(
            lambda: len(pods := tenant.pods()) == 1 and pods[0]["metadata"]["name"] not in before,
            "the last pod was replaced",
        )
        tenant.wait_ready()
        load.wait_for_answers()
    load.assert_none_lost()


def test_the_leader_killed_and_serving_is_not_touched(tenant) -> None:
    tenant.apply_model()
    tenant.wait_ready()
    pods = [pod["metadata"]["uid"] for pod in tenant.pods()]
    first = leader(tenant.kube).split("_")[0]
    operator = tenant.kube.get("pod", first, "-n", stage.SYSTEM)
    with Load(tenant, rate=20) as load:
        load.wait_for_answers()
        os.kill(find_process(operator["metadata"]["uid"], OPERATOR), signal.SIGKILL)
        tenant.wait(
            lambda: leader(tenant.kube).split("_")[0] not in ("", first), "the other replica leads", patience=20
        )
        load.wait_for_answers()
    load.assert_none_lost()
    assert [pod["metadata"]["uid"] for pod in tenant.pods()] == pods
    tenant.kube.run("kubectl", "scale", "completionmodel", "tiny", "-n", tenant.namespace, "--replicas=2")
    tenant.wait_ready(replicas=2)


def written_by_operator(tenant) -> dict[str, str]:
    """When the operator last changed each object of the namespace, as the API server recorded it."""
    kinds = "engines,services,poddisruptionbudgets,jobs,configmaps,pods"
    items = tenant.kube.items(kinds, "-n", tenant.namespace, "--show-managed-fields")
    return {
        f"{item['kind']}/{item['metadata']['name']}": max(entry["time"] for entry in entries)
        for item in items
        if (entries := [e for e in item["metadata"]["managedFields"] if e["manager"] == "hotstart-operator"])
    }


def test_a_new_leader_writes_nothing_where_all_is_well(tenant) -> None:
    tenant.apply_model()
    tenant.wait_ready()
    before, first = written_by_operator(tenant), leader(tenant.kube)
    assert {name.split("/")[0] for name in before} >= {"Engine", "Service", "PodDisruptionBudget", "Pod"}
    tenant.kube.run("kubectl", "delete", "pod", first.split("_")[0], "-n", stage.SYSTEM, "--grace-period=0", "--force")
    tenant.wait(lambda: leader(tenant.kube) not in ("", first), "another replica leads")
    tenant.kube.run("kubectl", "scale", "completionmodel", "tiny", "-n", tenant.namespace, "--replicas=2")
    tenant.wait_ready(replicas=2)  # so the new leader has reconciled the model
    after = written_by_operator(tenant)
    assert {name: after[name] for name in before} == before
