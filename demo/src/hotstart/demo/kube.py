"""kubectl and helm for the demo and the end-to-end tests."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

from hotstart.cluster.cluster import Cluster
from hotstart.demo.story import StepFailed


class Kube:
    """Runs kubectl and helm against the embedded cluster."""

    def __init__(self) -> None:
        self._env: dict[str, str] = {}

    def use(self, cluster: Cluster) -> None:
        """From now on, this cluster."""
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

    def get(self, *what: str) -> dict[str, Any] | None:
        """The object or list as JSON; None where there is none."""
        text = self.run("kubectl", "get", *what, "--ignore-not-found", "-o", "json")
        return json.loads(text) if text.strip() else None

    def items(self, *what: str) -> list[dict[str, Any]]:
        """The items of a list."""
        found = self.get(*what)
        return found["items"] if found else []

    def apply(self, manifest: str) -> str:
        """kubectl apply of a YAML text."""
        return self.run("kubectl", "apply", "-f", "-", stdin=manifest).strip()

    def logs(self, namespace: str, pod: str, *options: str) -> list[str]:
        """Lines of a pod's logs, each with its container; what kubectl says where there are none."""
        command = ("kubectl", "logs", "-n", namespace, pod, "--prefix", *options)
        done = subprocess.run(command, env=self._env, capture_output=True, text=True, check=False)
        return (done.stdout or done.stderr).splitlines()


def condition(thing: dict[str, Any], kind: str) -> dict[str, Any]:
    """The condition of that type; empty where there is none."""
    return next((c for c in thing.get("status", {}).get("conditions", ()) if c["type"] == kind), {})
