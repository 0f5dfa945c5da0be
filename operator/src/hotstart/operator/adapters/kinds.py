"""Where each kind lives in the API: group, version, plural, namespaced or not."""

from __future__ import annotations

from dataclasses import dataclass

from hotstart.exchange.names import API_VERSION


@dataclass(frozen=True)
class KindPlace:
    """``api_version`` as manifests write it."""

    api_version: str
    plural: str
    namespaced: bool = True

    @property
    def group(self) -> str:
        """API group, '' for the core group."""
        return self.api_version.rpartition("/")[0]

    @property
    def version(self) -> str:
        """Version within the group."""
        return self.api_version.rpartition("/")[2]

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """Path at the API server; without a namespace that of all namespaces."""
        root = f"/apis/{self.api_version}" if self.group else f"/api/{self.api_version}"
        place = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        parts = [part for part in (self.plural, name, subresource) if part]
        return f"{root}{place}/{'/'.join(parts)}"


KINDS = {
    "CompletionModel": KindPlace(API_VERSION, "completionmodels"),
    "Engine": KindPlace(API_VERSION, "engines"),
    "Pod": KindPlace("v1", "pods"),
    "Service": KindPlace("v1", "services"),
    "ConfigMap": KindPlace("v1", "configmaps"),
    "Secret": KindPlace("v1", "secrets"),
    "Event": KindPlace("v1", "events"),
    "Namespace": KindPlace("v1", "namespaces", namespaced=False),
    "Node": KindPlace("v1", "nodes", namespaced=False),
    "Job": KindPlace("batch/v1", "jobs"),
    "PodDisruptionBudget": KindPlace("policy/v1", "poddisruptionbudgets"),
    "Lease": KindPlace("coordination.k8s.io/v1", "leases"),
}
