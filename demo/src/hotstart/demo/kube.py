"""kubectl, helm and the API server itself for the demo and the end-to-end tests."""

from __future__ import annotations

import os
import subprocess
from typing import Any
from urllib.parse import urlencode

from hotstart.cluster.cluster import Cluster
from hotstart.cluster.errors import ClusterError
from hotstart.cluster.waiting import Api
from hotstart.demo.story import StepFailed

CORE, HOTSTART = "/api/v1", "/apis/hotstart.dev/v1alpha1"
APIS = {
    **dict.fromkeys(("namespaces", "nodes", "pods", "services", "configmaps", "events"), CORE),
    **dict.fromkeys(("completionmodels", "engines"), HOTSTART),
    "deployments": "/apis/apps/v1",
    "jobs": "/apis/batch/v1",
    "leases": "/apis/coordination.k8s.io/v1",
    "poddisruptionbudgets": "/apis/policy/v1",
}


class Kube:
    """The embedded cluster. What changes it goes by kubectl and helm, as a user's words do.

    What only looks asks the API server: it is done many times a second, and a start of kubectl costs 0.2 CPU s.
    """

    def __init__(self) -> None:
        self._env: dict[str, str] = {}
        self._api: Api | None = None

    def use(self, cluster: Cluster) -> None:
        """From now on, this cluster."""
        self._api = cluster.api()
        self._env = {**os.environ, **cluster.environment(), "PATH": f"{cluster.bin}:{os.environ['PATH']}"}

    @property
    def environment(self) -> dict[str, str]:
        """For a command that talks to the cluster."""
        return self._env

    @property
    def ready(self) -> bool:
        """Whether there is a cluster to ask."""
        return bool(self._env)

    def run(self, *command: str, stdin: str | None = None) -> str:
        """The command's output.

        Raises:
            StepFailed: it exits non-zero; with what it printed.
        """
        done = subprocess.run(command, env=self._env, input=stdin, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise StepFailed(f"`{' '.join(command)}` failed: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    def get(self, kind: str, name: str, namespace: str = "") -> dict[str, Any] | None:
        """The object of a kind (``pods``); None where there is none.

        Raises:
            StepFailed: the API server cannot be asked.
        """
        return self._ask(f"{make_path(kind, namespace)}/{name}")

    def items(self, kind: str, namespace: str = "", *, labels: str = "", fields: str = "") -> list[dict[str, Any]]:
        """The objects of a kind (``pods``) that the selectors name.

        Raises:
            StepFailed: the API server cannot be asked.
        """
        selectors = urlencode({"labelSelector": labels, "fieldSelector": fields})
        found = self._ask(f"{make_path(kind, namespace)}?{selectors}")
        return (
            [] if found is None else [{"kind": found["kind"].removesuffix("List"), **item} for item in found["items"]]
        )

    def _ask(self, path: str) -> dict[str, Any] | None:
        if self._api is None:
            raise StepFailed("there is no cluster yet to ask")
        try:
            return self._api.get(path)
        except ClusterError as error:
            raise StepFailed(str(error)) from error

    def apply(self, manifest: str) -> str:
        """kubectl apply of a YAML text."""
        return self.run("kubectl", "apply", "-f", "-", stdin=manifest).strip()

    def logs(self, namespace: str, pod: str, *options: str) -> list[str]:
        """Lines of a pod's logs, each with its container; what kubectl says where there are none."""
        command = ("kubectl", "logs", "-n", namespace, pod, "--prefix", *options)
        done = subprocess.run(command, env=self._env, capture_output=True, text=True, check=False)
        return (done.stdout or done.stderr).splitlines()


def make_path(kind: str, namespace: str) -> str:
    """The path of a kind's list in the API; of all namespaces, or of a kind without any, where none is named. Pure."""
    return f"{APIS[kind]}/namespaces/{namespace}/{kind}" if namespace else f"{APIS[kind]}/{kind}"


def condition(thing: dict[str, Any], kind: str) -> dict[str, Any]:
    """The condition of that type; empty where there is none."""
    return next((c for c in thing.get("status", {}).get("conditions", ()) if c["type"] == kind), {})
