"""Exactly what the operator may do, and that nobody else of the release may do anything.

The table below is the review: a verb more or less in the chart has to be put here too.
"""

from __future__ import annotations

from hotstart.operator.adapters.permissions import REQUIRED

READ = ("get", "list", "watch")
#: (where, group, resource, names) -> verbs. `models`: wherever models are; `cluster`: what has no namespace;
#: `own`: the operator's namespace only.
ALLOWED = {
    ("models", "hotstart.dev", "completionmodels", ()): READ,
    ("models", "hotstart.dev", "completionmodels/status", ()): ("patch",),
    ("models", "hotstart.dev", "completionmodels/scale", ()): ("update",),
    ("models", "hotstart.dev", "engines", ()): ("create", "delete", *READ, "patch"),
    ("models", "hotstart.dev", "engines/status", ()): ("patch",),
    ("models", "", "pods", ()): ("create", "delete", *READ, "patch"),
    ("models", "batch", "jobs", ()): ("create", "delete", *READ),
    ("models", "", "services", ()): ("create", *READ, "patch"),
    ("models", "policy", "poddisruptionbudgets", ()): ("create", *READ, "patch"),
    ("models", "", "events", ()): ("create", "patch"),
    ("models", "", "configmaps", ()): ("create",),
    ("models", "", "configmaps", ("hotstart-exchange-keys",)): ("patch",),
    ("cluster", "", "namespaces", ()): ("get",),
    ("cluster", "", "nodes", ()): ("list", "watch"),
    ("own", "", "pods", ()): ("list",),
    ("own", "coordination.k8s.io", "leases", ()): ("create",),
    ("own", "coordination.k8s.io", "leases", ("hotstart-operator",)): ("get", "update"),
    ("own", "", "secrets", ()): ("create",),
    ("own", "", "secrets", ("hotstart-exchange-signing",)): ("get", "update"),
    ("own", "", "configmaps", ()): ("create",),
    ("own", "", "configmaps", ("hotstart-exchange-keys",)): ("patch",),
}
ACCOUNT = {"kind": "ServiceAccount", "name": "hotstart-operator", "namespace": "hotstart-system"}


def roles(manifests):
    """(kind, name) -> rules of every role."""
    return {
        (each["kind"], each["metadata"]["name"]): each["rules"]
        for each in manifests
        if each["kind"] in ("Role", "ClusterRole")
    }


def bindings(manifests):
    return [each for each in manifests if each["kind"] in ("RoleBinding", "ClusterRoleBinding")]


def where(binding):
    """Where a binding grants: as in ALLOWED, but for the namespaces of models, which are given by name."""
    if binding["kind"] == "ClusterRoleBinding":
        return "models" if binding["roleRef"]["name"].endswith("-models") else "cluster"
    namespace = binding["metadata"]["namespace"]
    return "own" if namespace == "hotstart-system" else namespace


def granted(manifests):
    """What the bound roles allow, in the form of ALLOWED; a rule that repeats another is an error."""
    found = {}
    for binding in bindings(manifests):
        assert binding["subjects"] == [ACCOUNT]
        for rule in roles(manifests)[binding["roleRef"]["kind"], binding["roleRef"]["name"]]:
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    key = (where(binding), group, resource, tuple(rule.get("resourceNames", ())))
                    assert key not in found, f"{key} is granted twice"
                    found[key] = tuple(sorted(rule["verbs"]))
    return found


def expected(*places):
    """ALLOWED with `models` replaced by each of the places."""
    return {
        (place, *key[1:]): tuple(sorted(verbs))
        for key, verbs in ALLOWED.items()
        for place in (places if key[0] == "models" else (key[0],))
    }


def test_the_operator_may_do_exactly_this(default):
    assert granted(default) == expected("models")


def test_it_is_what_the_operator_says_it_needs():
    needed = {(str(each.scope), each.group, each.resource, each.names): tuple(sorted(each.verbs)) for each in REQUIRED}
    assert len(needed) == len(REQUIRED), "a resource stands twice"
    assert needed == expected("models")


def test_with_watched_namespaces_it_may_do_it_only_there(full):
    assert granted(full) == expected("team-a", "team-b")


def test_no_secret_outside_its_own_namespace(rendered):
    secrets = {key for key in granted(rendered) if key[2].split("/")[0] == "secrets"}
    assert {key[0] for key in secrets} == {"own"}
    readable = {key[3] for key in secrets if set(granted(rendered)[key]) & {"get", "list", "watch"}}
    assert readable == {("hotstart-exchange-signing",)}


def test_no_wildcard_and_no_way_to_more_rights(rendered):
    for rules in roles(rendered).values():
        for rule in rules:
            said = {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}
            assert not said & {"*", "escalate", "bind", "impersonate", "deletecollection", "pods/exec", "pods/attach"}
            assert "rbac.authorization.k8s.io" not in rule["apiGroups"]


def test_users_get_models_to_edit_and_engines_to_see(default):
    users = {
        name: rules for (kind, name), rules in roles(default).items() if name in ("hotstart-view", "hotstart-edit")
    }
    writable = {
        resource
        for rule in users["hotstart-edit"]
        for resource in rule["resources"]
        if set(rule["verbs"]) - {"get", "list", "watch"}
    }
    assert writable == {"completionmodels", "completionmodels/scale"}
    assert users["hotstart-view"] == [
        {"apiGroups": ["hotstart.dev"], "resources": ["completionmodels", "engines"], "verbs": ["get", "list", "watch"]}
    ]
