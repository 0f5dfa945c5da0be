"""The demo's places: where the router is reached, and that what the README shows is what the demo makes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hotstart.cluster import forward
from hotstart.cluster.errors import ClusterError
from hotstart.demo import figures, stage, steps
from hotstart.operator.api import CompletionModel

from tests.demo.doubles import CLUSTER, FakeKube

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """The local ports that were asked for."""
    ports: list[int] = []

    def reuse(cluster, host, port, local_port=0):
        ports.append(local_port)
        return local_port or 40001

    monkeypatch.setattr(forward, "resolve", lambda cluster, address: ("10.0.0.7", 8080))
    monkeypatch.setattr(forward, "reuse", reuse)
    return ports


def test_the_router_is_reached_where_the_readme_says(asked):
    url = stage.forward_router(CLUSTER)
    assert f'base_url="{url}/v1"' in block("python")
    assert f'model="{stage.MODEL_PATH}"' in block("python")


def test_another_port_is_taken_where_that_one_is(asked, monkeypatch):
    first = forward.reuse

    def reuse(cluster, host, port, local_port=0):
        if local_port:
            raise ClusterError("Port 8080 of 127.0.0.1 is taken.")
        return first(cluster, host, port, local_port)

    monkeypatch.setattr(forward, "reuse", reuse)
    assert stage.forward_router(CLUSTER) == "http://127.0.0.1:40001"


def leaves(value, path=()):
    """The values of a document by their places."""
    if not isinstance(value, dict):
        return {path: value}
    return {place: leaf for name, inner in value.items() for place, leaf in leaves(inner, (*path, name)).items()}


def test_the_readmes_model_is_the_demos():
    shown, applied = yaml.safe_load(block("yaml")), yaml.safe_load(stage.MANIFEST.read_text())
    assert shown["metadata"].pop("namespace") == stage.NAMESPACE
    assert leaves(shown).items() <= leaves(applied).items()
    assert applied["metadata"]["name"] == stage.MODEL
    slo = CompletionModel.from_api(applied).spec.slo.latency.milliseconds
    assert f"The SLO of the demo is {slo} ms" in README


def test_each_figure_of_the_readme_is_a_headline_of_the_demo():
    table = README.split("## What the demo measured", 1)[1].split("\n## ", 1)[0]
    named = set(re.findall(r"`(\w+)`", table))
    assert named
    assert named <= set(figures.HEADLINES)
    assert {"p95_ms", "p95_status_ms", "p95_one_replica_ms", "p95_two_replicas_ms", "total_seconds"} <= named


def test_what_an_earlier_demo_left_is_taken_away_pods_first():
    kube = FakeKube()
    kube.objects["namespaces"] = [{}]
    steps.forget_model(kube)
    assert [command[2] for command in kube.commands] == ["completionmodels", "pods", "namespace"]


def test_on_a_new_cluster_nothing_is_taken_away():
    kube = FakeKube()
    steps.forget_model(kube)
    assert kube.commands == []
