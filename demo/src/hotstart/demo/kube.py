"""kubectl and helm for the demo, and what the cluster says when a step fails."""

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

    def diagnosis(self, *namespaces: str) -> str:
        """Events, conditions and the last log lines of pods that are not well: the cause, not only a time-out."""
        said: list[str] = []
        for namespace in namespaces:
            models = self.items("completionmodels,engines", "-n", namespace)
            said += [line for model in models for line in condition_lines(model)]
            events = self.items("events", "-n", namespace, "--sort-by=.lastTimestamp")
            said += [f"event {e['involvedObject']['name']}: {e['reason']}: {e['message']}" for e in events[-12:]]
            for pod in self.items("pods", "-n", namespace):
                if not pod_is_well(pod):
                    said += self._log_lines(namespace, pod["metadata"]["name"])
        return "\n".join(said)

    def _log_lines(self, namespace: str, pod: str) -> list[str]:
        command = ("kubectl", "logs", "-n", namespace, pod, "--all-containers", "--tail=15", "--prefix")
        done = subprocess.run(command, env=self._env, capture_output=True, text=True, check=False)
        return [f"log {line}" for line in (done.stdout or done.stderr).splitlines()[-30:]]


def pod_is_well(pod: dict[str, Any]) -> bool:
    """Whether the pod succeeded or is Ready."""
    conditions = pod["status"].get("conditions", ())
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return ready or pod["status"].get("phase") == "Succeeded"


def condition_lines(thing: dict[str, Any]) -> list[str]:
    """One line for each condition of the object that is not True, with reason and message."""
    name = f"{thing['kind']} {thing['metadata']['name']}"
    conditions = thing.get("status", {}).get("conditions", ())
    return [
        f"{name}: {c['type']}={c['status']} {c['reason']}: {c.get('message', '')}"
        for c in conditions
        if c["status"] != "True"
    ]


def condition(thing: dict[str, Any], kind: str) -> dict[str, Any]:
    """The condition of that type; empty where there is none."""
    return next((c for c in thing.get("status", {}).get("conditions", ()) if c["type"] == kind), {})
