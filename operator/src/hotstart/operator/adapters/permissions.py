"""What the operator needs of RBAC, as values: the Helm chart grants this and nothing else, and a test compares the two.

Stands beside the adapters because they alone call the API server: a new call there is a new line here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from hotstart.exchange.names import GROUP, KEYS_CONFIGMAP, LEASE, SIGNING_SECRET


class Scope(StrEnum):
    """Where a permission holds."""

    MODELS = "models"  # wherever models are: the whole cluster, or the watched namespaces only
    CLUSTER = "cluster"  # what has no namespace
    OWN = "own"  # the operator's own namespace only


@dataclass(frozen=True)
class Permission:
    """Verbs on one resource; with ``names``, on the objects of these names only."""

    scope: Scope
    group: str
    resource: str
    verbs: tuple[str, ...]
    names: tuple[str, ...] = ()


READ = ("get", "list", "watch")

#: RBAC cannot restrict `create` by name: hence two lines for each object that the operator makes under a fixed name.
REQUIRED: tuple[Permission, ...] = (
    Permission(Scope.MODELS, GROUP, "completionmodels", READ),
    Permission(Scope.MODELS, GROUP, "completionmodels/status", ("patch",)),
    Permission(Scope.MODELS, GROUP, "completionmodels/scale", ("patch", "update")),
    Permission(Scope.MODELS, GROUP, "engines", (*READ, "create", "patch")),
    Permission(Scope.MODELS, GROUP, "engines/status", ("patch",)),
    Permission(Scope.MODELS, "", "pods", (*READ, "create", "patch", "delete")),
    Permission(Scope.MODELS, "", "pods/log", ("get",)),
    Permission(Scope.MODELS, "batch", "jobs", (*READ, "create", "delete")),
    Permission(Scope.MODELS, "", "services", (*READ, "create", "patch")),
    Permission(Scope.MODELS, "policy", "poddisruptionbudgets", (*READ, "create", "patch", "delete")),
    Permission(Scope.MODELS, "", "events", ("create", "patch")),
    Permission(Scope.MODELS, "", "configmaps", ("create",)),
    Permission(Scope.MODELS, "", "configmaps", ("get", "patch"), (KEYS_CONFIGMAP,)),
    Permission(Scope.CLUSTER, "", "namespaces", READ),
    Permission(Scope.CLUSTER, "", "nodes", READ),
    Permission(Scope.OWN, "", "pods", READ),
    Permission(Scope.OWN, "coordination.k8s.io", "leases", ("create",)),
    Permission(Scope.OWN, "coordination.k8s.io", "leases", ("get", "update", "patch"), (LEASE,)),
    Permission(Scope.OWN, "", "secrets", ("create",)),
    Permission(Scope.OWN, "", "secrets", ("get", "update", "patch"), (SIGNING_SECRET,)),
    Permission(Scope.OWN, "", "configmaps", ("create",)),
    Permission(Scope.OWN, "", "configmaps", ("get", "patch"), (KEYS_CONFIGMAP,)),
)
