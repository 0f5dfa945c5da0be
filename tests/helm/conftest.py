"""The chart as `helm template` renders it, and the values that the tests render it with.

The golden files change only by `HOTSTART_UPDATE_GOLDEN=1 pytest tests/helm`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hotstart.cluster import binaries
from hotstart.cluster.tools import HELM

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "hotstart"
NAMESPACE = "hotstart-system"
KUBE_VERSION = "1.35.0"

#: The least that installs.
DEFAULT: dict[str, Any] = {"store": {"bucket": "hotstart-engines", "secretName": "engine-store"}}
#: Every value set to something else than its default, but for the policies, which are wanted in the golden file.
FULL: dict[str, Any] = {
    "image": {
        "registry": "registry.example.com:5000/ml",
        "control": "hotstart-control",
        "tritonCpu": "hotstart-triton",
        "builder": "hotstart-builder",
        "tritonTrtllm": "hotstart-triton-trtllm",
        "builderTrtllm": "hotstart-builder-trtllm",
        "tag": "1.2.3",
        "pullPolicy": "Always",
        "pullSecrets": ["registry-login"],
    },
    "operator": {
        "replicas": 3,
        "watchNamespaces": ["team-a", "team-b"],
        "management": "Paused",
        "keyRotation": "24h",
        "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": 2, "memory": "2Gi"}},
        "nodeSelector": {"pool": "system"},
        "tolerations": [{"key": "system", "operator": "Exists", "effect": "NoSchedule"}],
    },
    "router": {
        "replicas": 5,
        "resources": {"requests": {"cpu": "500m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}},
        "service": {"type": "LoadBalancer", "port": 80},
        "terminationGracePeriodSeconds": 120,
        "nodeSelector": {"pool": "edge"},
        "tolerations": [{"key": "edge", "operator": "Equal", "value": "yes", "effect": "NoExecute"}],
    },
    "store": {
        "bucket": "ml-engines",
        "endpoint": "http://s3.storage:9000",
        "region": "eu-central-1",
        "collection": {"mode": "Report", "ttl": "24h"},
        "secretName": "s3.engines",
    },
    "networkPolicies": {"enabled": True},
    "rbac": {"aggregateToDefaultRoles": False},
}

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """Runs helm on the chart."""

    helm: Path
    folder: Path = CHART

    def run(self, command: str, values: Mapping[str, Any], *more: str) -> subprocess.CompletedProcess[str]:
        """The ended helm command; the values go in by its standard input."""
        where = ("--namespace", NAMESPACE, "--kube-version", KUBE_VERSION)
        return subprocess.run(
            (str(self.helm), *command.split(), str(self.folder), *where, "--values", "-", *more),
            input=yaml.safe_dump(dict(values)),
            capture_output=True,
            text=True,
            check=False,
        )

    def text(self, values: Mapping[str, Any], *more: str, release: str = "hotstart") -> str:
        """The rendered manifests as helm prints them."""
        done = self.run(f"template {release}", values, *more)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def manifests(self, values: Mapping[str, Any], *more: str, release: str = "hotstart") -> list[Manifest]:
        """The rendered manifests, parsed."""
        return [loaded for loaded in yaml.safe_load_all(self.text(values, *more, release=release)) if loaded]

    def refusal(self, values: Mapping[str, Any]) -> str:
        """What helm says when it refuses the values."""
        done = self.run("template hotstart", values)
        assert done.returncode != 0, "helm took values that it has to refuse"
        return done.stderr


@pytest.fixture(scope="session")
def chart() -> Chart:
    programs = binaries.ensure((HELM,), binaries.cache_dir(os.environ), os.environ, print)
    return Chart(programs["helm"])


@pytest.fixture(scope="session")
def values() -> dict[str, dict[str, Any]]:
    """The two sets of values that the tests render: the least that installs, and everything set."""
    return {"default": DEFAULT, "full": FULL}


@pytest.fixture(scope="session")
def default(chart: Chart) -> list[Manifest]:
    """Everything that the chart makes with the least values."""
    return chart.manifests(DEFAULT)


@pytest.fixture(scope="session")
def full(chart: Chart) -> list[Manifest]:
    """Everything that the chart makes with all values set."""
    return chart.manifests(FULL)


@pytest.fixture(scope="session", params=["default", "full"])
def rendered(request: pytest.FixtureRequest) -> list[Manifest]:
    """Each of the two in turn."""
    manifests: list[Manifest] = request.getfixturevalue(request.param)
    return manifests
