"""Nothing that the operator does costs a request: scale-down, a new pod template, a dead leader."""

from __future__ import annotations

import asyncio
import threading

import pytest
from hotstart.demo import stage
from hotstart.loadtest.drive import run_load
from hotstart.loadtest.plan import make_constant_plan

pytestmark = pytest.mark.e2e


class Load:
    """An open-loop load in a thread of its own."""

    def __init__(self, tenant, *, rate: float, duration: float) -> None:
        plan = make_constant_plan(
            tenant.platform.url, f"{tenant.namespace}/tiny", rate=rate, duration=duration, max_tokens=4
        )
        self.result = None
        self._thread = threading.Thread(target=self._run, args=(plan,))

    def _run(self, plan) -> None:
        self.result = asyncio.run(run_load(plan)).to_json()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._thread.join()


def leader(kube) -> str:
    lease = kube.get("lease", "hotstart-operator", "-n", stage.SYSTEM) or {}
    return lease.get("spec", {}).get("holderIdentity") or ""


def test_2000_requests_through_scale_down_and_a_change_of_the_pod_template(tenant) -> None:
    tenant.apply_model(replicas="2")
    tenant.wait_ready(replicas=2)
    before = {pod["metadata"]["name"] for pod in tenant.pods()}
    with Load(tenant, rate=25, duration=80) as load:
        tenant.kube.run("kubectl", "scale", "completionmodel", "tiny", "-n", tenant.namespace, "--replicas=1")
        tenant.wait(lambda: len(tenant.pods()) == 1, "one pod is left")
        tenant.apply_model(maxNewTokens="7")
        tenant.wait(
            lambda: len(pods := tenant.pods()) == 1 and pods[0]["metadata"]["name"] not in before,
            "the last pod was replaced",
        )
        tenant.wait_ready()
    assert load.result["requests"] == 2000
    assert load.result["failed"] == 0, (load.result["failures"], load.result["failure_details"])


def test_the_leader_killed_and_serving_is_not_touched(tenant) -> None:
    tenant.apply_model()
    tenant.wait_ready()
    pods = [pod["metadata"]["uid"] for pod in tenant.pods()]
    first = leader(tenant.kube)
    name = first.split("_")[0]
    with Load(tenant, rate=20, duration=25) as load:
        tenant.kube.run("kubectl", "delete", "pod", name, "-n", stage.SYSTEM, "--grace-period=0", "--force")
        tenant.wait(lambda: leader(tenant.kube) not in ("", first), "another replica leads")
    assert load.result["failed"] == 0, (load.result["failures"], load.result["failure_details"])
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
