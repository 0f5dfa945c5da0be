"""Agent ports answer the operator only, serving ports routers only."""

from __future__ import annotations

from hotstart.exchange import names


def policies(manifests):
    """(namespace, name) -> port -> the components that may reach it; "anyone" where no peer is named."""
    found = {}
    for each in (manifest for manifest in manifests if manifest["kind"] == "NetworkPolicy"):
        assert each["spec"]["policyTypes"] == ["Ingress"]
        ports = {}
        for rule in each["spec"]["ingress"]:
            peers = [peer["podSelector"]["matchLabels"][names.LABEL_COMPONENT] for peer in rule.get("from", [])]
            for port in rule["ports"]:
                ports[port["port"]] = peers or ["anyone"]
        found[each["metadata"]["namespace"], each["metadata"]["name"]] = ports
    return found


OWN = {
    ("hotstart-system", "hotstart-router"): {
        names.PORT_ROUTER: ["anyone"],
        names.PORT_ROUTER_EXCHANGE: [names.COMPONENT_OPERATOR],
    },
    ("hotstart-system", "hotstart-operator"): {names.PORT_OPERATOR_METRICS: ["anyone"]},
}
SERVING = {names.PORT_TRITON_GRPC: [names.COMPONENT_ROUTER], names.PORT_AGENT: [names.COMPONENT_OPERATOR]}
BUILD = {names.PORT_AGENT: [names.COMPONENT_OPERATOR]}


def test_policies_of_the_release_s_namespace(default):
    assert policies(default) == OWN


def test_watched_namespaces_get_theirs(full):
    theirs = {
        (namespace, name): ports
        for namespace in ("team-a", "team-b")
        for name, ports in (("hotstart-serving", SERVING), ("hotstart-build", BUILD))
    }
    assert policies(full) == OWN | theirs


def test_a_peer_in_another_namespace_is_named_by_its_namespace_too(full):
    for each in (manifest for manifest in full if manifest["metadata"].get("namespace") in ("team-a", "team-b")):
        for peer in (peer for rule in each.get("spec", {}).get("ingress", []) for peer in rule["from"]):
            assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "hotstart-system"}


def test_the_documented_command_makes_only_the_policies_of_models(chart, values):
    only = ("--show-only", "templates/model-network-policies.yaml", "--set", "operator.watchNamespaces={team-a}")
    made = chart.manifests(values["default"], *only)
    assert {(each["kind"], each["metadata"]["namespace"]) for each in made} == {("NetworkPolicy", "team-a")}


def test_none_where_they_are_switched_off(chart, values):
    assert policies(chart.manifests({**values["full"], "networkPolicies": {"enabled": False}})) == {}
