"""Every pod of the chart passes the restricted Pod Security Standard; the rules are those of Kubernetes' page on it."""

from __future__ import annotations

import copy

import pytest

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def violations(pod):
    """What the restricted standard forbids in a pod's spec, as paths."""
    security = pod.get("securityContext", {})
    found = [name for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name)]
    found += [f"volumes/{each['name']}" for each in pod.get("volumes", []) if not set(each) - {"name"} <= VOLUMES]
    for container in (*pod.get("initContainers", []), *pod["containers"]):
        own = container.get("securityContext", {})
        wrong = {
            "runAsNonRoot": own.get("runAsNonRoot", security.get("runAsNonRoot")) is not True,
            "runAsUser": own.get("runAsUser", security.get("runAsUser")) == 0,
            "privileged": own.get("privileged", False),
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is not False,
            "capabilities/drop": "ALL" not in own.get("capabilities", {}).get("drop", []),
            "capabilities/add": bool(set(own.get("capabilities", {}).get("add", [])) - {"NET_BIND_SERVICE"}),
            "seccompProfile": own.get("seccompProfile", security.get("seccompProfile", {})).get("type")
            not in ("RuntimeDefault", "Localhost"),
            "hostPort": any(port.get("hostPort") for port in container.get("ports", [])),
            "hostProcess": own.get("windowsOptions", {}).get("hostProcess", False),
        }
        found += [f"{container['name']}/{path}" for path, is_wrong in wrong.items() if is_wrong]
    return found


def pods(manifests):
    """Spec of every pod template, wherever it stands."""
    templates = [each["spec"]["template"] for each in manifests if "template" in each.get("spec", {})]
    return [template["spec"] for template in templates]


def test_every_pod_is_restricted(rendered):
    assert len(pods(rendered)) == 2
    assert [violations(pod) for pod in pods(rendered)] == [[], []]


def broken(change):
    def apply(pod):
        pod = copy.deepcopy(pod)
        change(pod, pod["containers"][0])
        return pod

    return apply


BREAKS = [
    (broken(lambda pod, _: pod.update(hostNetwork=True)), "hostNetwork"),
    (broken(lambda pod, _: pod["volumes"].append({"name": "root", "hostPath": {"path": "/"}})), "volumes/root"),
    (broken(lambda pod, _: pod["securityContext"].pop("runAsNonRoot")), "operator/runAsNonRoot"),
    (broken(lambda pod, _: pod["securityContext"].pop("seccompProfile")), "operator/seccompProfile"),
    (broken(lambda _, c: c["securityContext"].update(privileged=True)), "operator/privileged"),
    (broken(lambda _, c: c["securityContext"].pop("capabilities")), "operator/capabilities/drop"),
    (broken(lambda _, c: c.pop("securityContext")), "operator/allowPrivilegeEscalation"),
    (broken(lambda _, c: c["ports"][0].update(hostPort=80)), "operator/hostPort"),
]


@pytest.mark.parametrize(("change", "path"), BREAKS, ids=[path for _, path in BREAKS])
def test_the_check_finds_what_is_forbidden(default, change, path):
    assert path in violations(change(pods(default)[0]))


def test_root_is_read_only_and_every_container_is_bounded(rendered):
    for pod in pods(rendered):
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert set(container["resources"]["requests"]) == {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]
            assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(container)
        assert all("sizeLimit" in each["emptyDir"] for each in pod["volumes"] if "emptyDir" in each)


def test_only_the_operator_has_a_token_and_the_store_s_credentials(rendered):
    operator, router = (
        next(
            each["spec"]["template"]["spec"]
            for each in rendered
            if each["metadata"]["name"] == f"hotstart-{name}" and each["kind"] == "Deployment"
        )
        for name in ("operator", "router")
    )
    accounts = {each["metadata"]["name"]: each for each in rendered if each["kind"] == "ServiceAccount"}
    assert router["automountServiceAccountToken"] is False
    assert accounts["hotstart-router"]["automountServiceAccountToken"] is False
    assert "AWS_SECRET_ACCESS_KEY" in str(operator)
    assert "AWS" not in str(router)
    assert "secretKeyRef" not in str(router)
    assert not any("secret" in volume for volume in router["volumes"])
