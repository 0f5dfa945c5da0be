"""What the operator may do and no more: the chart's roles are compared with this list.

``scope`` is "models" (in every namespace whose models are served), "cluster" (what has no namespace) or "own" (the
operator's own namespace). A rule with names is limited to objects of these names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hotstart.exchange.names import GROUP, KEYS_CONFIGMAP, LEASE, SIGNING_SECRET


@dataclass(frozen=True)
class Permission:
    """Verbs on one resource."""

    group: str
    resource: str
    verbs: tuple[str, ...]
    scope: Literal["models", "cluster", "own"]
    names: tuple[str, ...] = ()


REQUIRED: tuple[Permission, ...] = (
    Permission(GROUP, "completionmodels", ("get", "list", "watch"), "models"),
    Permission(GROUP, "completionmodels/status", ("patch",), "models"),
    Permission(GROUP, "completionmodels/scale", ("update",), "models"),
    Permission(GROUP, "engines", ("get", "list", "watch", "create", "patch", "delete"), "models"),
    Permission(GROUP, "engines/status", ("patch",), "models"),
    Permission("", "pods", ("get", "list", "watch", "create", "patch", "delete"), "models"),
    Permission("batch", "jobs", ("get", "list", "watch", "create", "delete"), "models"),
    Permission("", "services", ("get", "list", "watch", "create", "patch"), "models"),
    Permission("policy", "poddisruptionbudgets", ("get", "list", "watch", "create", "patch"), "models"),
    Permission("", "events", ("create", "patch"), "models"),
    Permission("", "configmaps", ("create",), "models"),
    Permission("", "configmaps", ("patch",), "models", (KEYS_CONFIGMAP,)),
    Permission("", "namespaces", ("get",), "cluster"),
    Permission("", "nodes", ("list", "watch"), "cluster"),
    Permission("", "pods", ("list",), "own"),
    Permission("coordination.k8s.io", "leases", ("create",), "own"),
    Permission("coordination.k8s.io", "leases", ("get", "update"), "own", (LEASE,)),
    Permission("", "secrets", ("create",), "own"),
    Permission("", "secrets", ("get", "update"), "own", (SIGNING_SECRET,)),
    Permission("", "configmaps", ("create",), "own"),
    Permission("", "configmaps", ("patch",), "own", (KEYS_CONFIGMAP,)),
)
