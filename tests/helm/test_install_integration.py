"""The chart against a real API server: it is taken, it upgrades its CRDs, it leaves them, and RBAC says what we say."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.integration

CHART = Path(__file__).resolve().parents[2] / "helm" / "hotstart"
OPERATOR = "system:serviceaccount:{namespace}:hotstart-operator"
ROUTER = "system:serviceaccount:{namespace}:hotstart-router"
CRD = "completionmodels.hotstart.dev"


class Release:
    """One release of the chart in a namespace that enforces the restricted standard."""

    def __init__(self, helm, api_server, namespace, values) -> None:
        self.namespace = namespace
        self.kubectl = api_server.run_kubectl
        self.try_kubectl = api_server.try_kubectl
        self._helm = (str(helm), "--kubeconfig", str(api_server.kubeconfig), "--namespace", namespace)
        self._values = yaml.safe_dump(values)

    def helm(self, *arguments):
        done = subprocess.run(
            (*self._helm, *map(str, arguments)), input=self._values, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def upgrade(self, folder, *more):
        return self.helm("upgrade", "--install", "hotstart", folder, "--values", "-", *more)

    def may(self, user, verb, resource, *more):
        """Whether RBAC lets the user; kubectl exits 1 on a no."""
        answer = self.try_kubectl("auth", "can-i", verb, resource, "--as", user.format(namespace=self.namespace), *more)
        return answer.stdout.strip().splitlines()[-1] == "yes"


@pytest.fixture(scope="module")
def release(chart, api_server, values):
    namespace = "hotstart-chart-test"
    api_server.run_kubectl("create", "namespace", namespace)
    api_server.run_kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    made = Release(chart.helm, api_server, namespace, values["default"])
    # The shared server has the kinds already.
    made.upgrade(CHART, "--take-ownership")
    yield made
    if made.helm("list", "--short").strip():
        made.helm("uninstall", "hotstart")


def test_the_api_server_knows_every_field(release, chart, values):
    text = chart.text(values["default"]).replace("hotstart-system", release.namespace)
    without_crds = "\n---\n".join(each for each in text.split("\n---\n") if "/templates/crds/" not in each)
    apply = ("apply", "--dry-run=server", "--validate=strict", "--server-side", "--force-conflicts")
    release.kubectl(*apply, "--field-manager=test", "-f", "-", stdin=without_crds)


@pytest.mark.parametrize("component", ["operator", "router"])
def test_its_pods_are_admitted_where_restricted_is_enforced(release, component):
    deployment = yaml.safe_load(
        release.kubectl("get", "deployment", f"hotstart-{component}", "-n", release.namespace, "-o", "yaml")
    )
    template = deployment["spec"]["template"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": component, "labels": template["metadata"]["labels"]},
        "spec": template["spec"],
    }
    release.kubectl("create", "--dry-run=server", "-n", release.namespace, "-f", "-", stdin=yaml.safe_dump(pod))


ELSEWHERE = ("-n", "default")
MAY = [
    ("get", CRD, ELSEWHERE),
    ("patch", CRD, (*ELSEWHERE, "--subresource=status")),
    ("update", CRD, (*ELSEWHERE, "--subresource=scale")),
    ("create", "engines.hotstart.dev", ELSEWHERE),
    ("create", "pods", ELSEWHERE),
    ("watch", "nodes", ()),
    ("create", "secrets", ()),
    ("get", "secrets/hotstart-exchange-signing", ()),
    ("update", "secrets/hotstart-exchange-signing", ()),
    ("update", "leases.coordination.k8s.io/hotstart-operator", ()),
]
MAY_NOT = [
    ("get", "secrets", ELSEWHERE),
    ("list", "secrets", ELSEWHERE),
    ("create", "secrets", ELSEWHERE),
    ("get", "secrets/hotstart-exchange-signing", ELSEWHERE),
    ("get", "secrets/engine-store", ()),
    ("update", "secrets/engine-store", ()),
    ("list", "secrets", ()),
    ("update", CRD, ELSEWHERE),
    ("delete", CRD, ELSEWHERE),
    ("create", "pods", (*ELSEWHERE, "--subresource=exec")),
    ("get", "configmaps/anything", ELSEWHERE),
    ("create", "rolebindings.rbac.authorization.k8s.io", ELSEWHERE),
    ("create", "serviceaccounts", (*ELSEWHERE, "--subresource=token")),
]


def test_the_operator_may_do_its_work_and_no_more(release):
    def answers(rows):
        return {row: release.may(OPERATOR, row[0], row[1], *(row[2] or ("-n", release.namespace))) for row in rows}

    assert [row for row, allowed in answers(MAY).items() if not allowed] == []
    assert [row for row, allowed in answers(MAY_NOT).items() if allowed] == []


def test_the_router_may_do_nothing(release):
    for verb, resource in (("get", "pods"), ("list", CRD), ("get", "configmaps"), ("get", "secrets")):
        assert not release.may(ROUTER, verb, resource, "-n", release.namespace)


def test_an_upgrade_of_the_chart_upgrades_the_kinds(release, tmp_path):
    newer = tmp_path / "hotstart"
    shutil.copytree(CHART, newer)
    path = newer / "templates" / "crds" / "hotstart.dev_completionmodels.yaml"
    crd = yaml.safe_load(path.read_text(encoding="utf-8"))
    crd["spec"]["versions"][0]["additionalPrinterColumns"].append(
        {"name": "Newer", "type": "integer", "jsonPath": ".metadata.generation"}
    )
    path.write_text(yaml.safe_dump(crd), encoding="utf-8")

    def columns():
        live = yaml.safe_load(release.kubectl("get", "crd", CRD, "-o", "yaml"))
        return [column["name"] for column in live["spec"]["versions"][0]["additionalPrinterColumns"]]

    assert "Newer" not in columns()
    release.upgrade(newer)
    assert "Newer" in columns()
    release.upgrade(CHART)
    assert "Newer" not in columns()


def test_an_uninstall_leaves_the_kinds(release):
    release.helm("uninstall", "hotstart")
    assert release.kubectl("get", "crd", CRD, "engines.hotstart.dev", "-o", "name").split() == [
        f"customresourcedefinition.apiextensions.k8s.io/{CRD}",
        "customresourcedefinition.apiextensions.k8s.io/engines.hotstart.dev",
    ]
    assert "hotstart-operator" not in release.kubectl("get", "deployments,clusterroles", "-n", release.namespace)
