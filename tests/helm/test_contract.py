"""Names, labels, ports and environment that the chart writes as text are those that the programs use."""

from __future__ import annotations

from pathlib import Path

import pytest
from hotstart.exchange import names
from hotstart.router.settings import parse_settings

ENVIRONMENT = {
    "HOTSTART_NAMESPACE",
    "POD_NAME",
    "HOTSTART_WATCH_NAMESPACES",
    "HOTSTART_IMAGE_TRITON_CPU",
    "HOTSTART_IMAGE_BUILDER",
    "HOTSTART_IMAGE_TRITON_TRTLLM",
    "HOTSTART_IMAGE_BUILDER_TRTLLM",
    "HOTSTART_IMAGE_PULL_POLICY",
    "HOTSTART_STORE_BUCKET",
    "HOTSTART_STORE_ENDPOINT",
    "HOTSTART_STORE_REGION",
    "HOTSTART_COLLECTION_MODE",
    "HOTSTART_COLLECTION_TTL",
    "HOTSTART_MANAGEMENT",
    "HOTSTART_KEY_ROTATION",
    "HOTSTART_STORE_CREDENTIALS",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
}


def one(manifests, kind, name):
    found = [each for each in manifests if each["kind"] == kind and each["metadata"]["name"] == name]
    assert len(found) == 1, f"{len(found)} of {kind} {name}"
    return found[0]


def template(manifests, component):
    return one(manifests, "Deployment", f"hotstart-{component}")["spec"]["template"]


def environment(container):
    return {each["name"]: each.get("value") for each in container["env"]}


def router_settings(manifests):
    """The router's own reading of what the chart gives it."""
    container = template(manifests, "router")["spec"]["containers"][0]
    return parse_settings(container["args"], {"POD_UID": "a-uid"})


def port(container, name):
    return next(each["containerPort"] for each in container["ports"] if each["name"] == name)


@pytest.mark.parametrize("component", [names.COMPONENT_OPERATOR, names.COMPONENT_ROUTER])
def test_pods_carry_their_component_and_are_selected_by_it(rendered, component):
    deployment = one(rendered, "Deployment", f"hotstart-{component}")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert labels[names.LABEL_COMPONENT] == component
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    budget = one(rendered, "PodDisruptionBudget", f"hotstart-{component}")["spec"]
    assert budget["selector"]["matchLabels"] == labels
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_no_version_stands_in_a_pod_s_labels(chart, values):
    """Else an upgrade of the chart would restart the routers though nothing in them changed."""
    for component in ("operator", "router"):
        labels = template(chart.manifests(values["default"]), component)["metadata"]["labels"]
        assert not {"helm.sh/chart", "app.kubernetes.io/version"} & set(labels)


def test_the_operator_gets_its_environment(full):
    container = template(full, "operator")["spec"]["containers"][0]
    given = environment(container)
    assert set(given) == ENVIRONMENT
    assert given["HOTSTART_WATCH_NAMESPACES"] == "team-a,team-b"
    assert given["HOTSTART_IMAGE_TRITON_CPU"] == "registry.example.com:5000/ml/hotstart-triton:1.2.3"
    assert given["HOTSTART_IMAGE_BUILDER"] == "registry.example.com:5000/ml/hotstart-builder:1.2.3"
    assert given["HOTSTART_IMAGE_TRITON_TRTLLM"] == "registry.example.com:5000/ml/hotstart-triton-trtllm:1.2.3"
    assert given["HOTSTART_IMAGE_BUILDER_TRTLLM"] == "registry.example.com:5000/ml/hotstart-builder-trtllm:1.2.3"
    assert given["HOTSTART_IMAGE_PULL_POLICY"] == "Always"
    assert given["HOTSTART_STORE_ENDPOINT"] == "http://s3.storage:9000"
    assert port(container, "metrics") == names.PORT_OPERATOR_METRICS


def test_the_operator_sees_the_store_s_credentials_change(full):
    pod = template(full, "operator")["spec"]
    mounts = {each["mountPath"]: each["name"] for each in pod["containers"][0]["volumeMounts"]}
    volumes = {each["name"]: each for each in pod["volumes"]}
    folder = environment(pod["containers"][0])["HOTSTART_STORE_CREDENTIALS"]
    assert volumes[mounts[folder]]["secret"] == {"secretName": "s3.engines"}


def test_the_router_gets_its_ports_and_keys(default):
    pod = template(default, "router")["spec"]
    container = pod["containers"][0]
    assert port(container, "http") == names.PORT_ROUTER
    assert port(container, "exchange") == names.PORT_ROUTER_EXCHANGE
    settings = router_settings(default)
    assert (settings.port, settings.exchange_port) == (names.PORT_ROUTER, names.PORT_ROUTER_EXCHANGE)
    mounts = {each["name"]: each for each in container["volumeMounts"]}
    assert mounts["exchange-keys"]["mountPath"] == names.KEYS_MOUNT
    assert settings.keys_file == Path(names.KEYS_MOUNT) / names.KEYS_FILE
    assert str(settings.state.parent) == mounts["state"]["mountPath"]
    assert {each["name"]: each for each in pod["volumes"]}["exchange-keys"]["configMap"]["name"] == names.KEYS_CONFIGMAP
    assert {"POD_UID"} <= set(environment(container))


def test_the_router_has_time_to_drain(rendered):
    settings = router_settings(rendered)
    grace = template(rendered, "router")["spec"]["terminationGracePeriodSeconds"]
    assert settings.drain_delay >= 5
    assert settings.drain_timeout > 0
    assert settings.drain_delay + settings.drain_timeout < grace


def test_the_service_reaches_the_routers(rendered):
    service = one(rendered, "Service", "hotstart-router")["spec"]
    assert service["selector"] == template(rendered, "router")["metadata"]["labels"]
    assert [each["targetPort"] for each in service["ports"]] == ["http"]


@pytest.mark.parametrize(
    ("release", "name"),
    [("hotstart", "hotstart-router"), ("mine", "mine-hotstart-router"), ("a" * 53, "a" * 40 + "-router")],
)
def test_names_begin_with_the_release(chart, values, release, name):
    done = chart.run(f"template {release}", values["default"])
    assert f"\n  name: {name}\n" in done.stdout
