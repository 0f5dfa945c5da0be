"""`make demo` from its first line to its exit code, against a cluster in memory."""

from __future__ import annotations

import json
import os
import urllib.request
from types import SimpleNamespace

import botocore.exceptions
import openai
import pytest
from hotstart.cluster.errors import ClusterError
from hotstart.demo import __main__ as demo
from hotstart.demo import figures, load, stage, steps, watch
from hotstart.demo.story import StepFailed

from tests.demo.doubles import CLUSTER, GONE, FakeKube, make_clock, play_load


class FakeOpenAI:
    """The client: every prompt is answered."""

    def __init__(self, **options) -> None:
        answer = SimpleNamespace(choices=[SimpleNamespace(text="return fibonacci(n - 1)")])
        self.completions = SimpleNamespace(create=lambda **request: answer)


@pytest.fixture
def kube(monkeypatch, tmp_path) -> FakeKube:
    """The cluster, with all else that the demo touches replaced."""
    kube = FakeKube()
    for name in ("no_proxy", "NO_PROXY"):  # they are as they were after the test
        monkeypatch.setenv(name, "")
    kube.scale_after(3)  # until it is Ready, for the load's SLO, and once under load
    monkeypatch.setattr(demo, "Kube", lambda: kube)
    monkeypatch.setattr(stage, "FIGURES", stage.ROOT / "build" / "tests" / tmp_path.name / "demo.json")
    stage.FIGURES.parent.mkdir(parents=True)
    monkeypatch.setattr(stage, "start_cluster", lambda story: CLUSTER)
    monkeypatch.setattr(stage, "empty_engine_bucket", lambda cluster: None)
    monkeypatch.setattr(stage, "upload_checkpoint", lambda cluster, story: None)
    monkeypatch.setattr(stage, "forward_router", lambda cluster: stage.ROUTER_URL)
    monkeypatch.setattr(openai, "OpenAI", FakeOpenAI)
    monkeypatch.setattr(load, "PROBE_PAUSE", 0)
    monkeypatch.setattr(load, "LOOK_SECONDS", 0)
    monkeypatch.setattr(load, "utc_now", make_clock())
    monkeypatch.setattr(load, "decide_rate", lambda lone, work: 5.0)
    monkeypatch.setattr(load, "run_in_processes", play_load())
    monkeypatch.setattr(watch, "POLL_SECONDS", 0)
    yield kube
    stage.FIGURES.unlink(missing_ok=True)
    stage.FIGURES.parent.rmdir()


def test_the_story_ends_with_its_figures(kube, capsys):
    assert demo.main() == 0
    facts = json.loads(stage.FIGURES.read_text())
    assert (facts["engine_build_seconds"], facts["agreement"], facts["builds"]) == (25, "90.5 %", 1)
    assert (facts["first_pod_seconds"], facts["second_pod_seconds"]) == (4.3, 3.8)
    assert (facts["requests"], facts["failed"], facts["scaled_to"]) == (300, 0, 2)
    assert (facts["p95_ms"], facts["p95_status_ms"], facts["slo_ms"]) == (2000.0, 1390, 1500.0)
    assert (facts["p95_one_replica_ms"], facts["p95_two_replicas_ms"]) == (2000.0, 500.0)
    assert facts["slo_attainment"] == pytest.approx(250 / 300, abs=1e-4)
    steps_of_the_story = (
        "cluster",
        "checkpoint",
        "install",
        "engine_and_first_pod",
        "completion",
        "load",
        "scale_down",
    )
    assert {f"phase_{name}_seconds" for name in steps_of_the_story} <= set(facts)
    assert {"phase_first_load_seconds", "phase_second_other_seconds"} <= set(facts)
    assert all(not isinstance(value, dict | list) for value in facts.values()), "flat"
    said = capsys.readouterr().out
    assert all(f"    {name} " in said for name in figures.HEADLINES)
    assert "return fibonacci(n - 1)" in said
    assert "1 -> 2: DemandRose: so many requests." in said
    assert "make down" in said
    assert "was taken" not in said


def test_the_model_is_applied_as_its_example_stands(kube):
    assert demo.main() == 0
    assert ("kubectl", "apply", "-n", "demo", "-f", str(stage.MANIFEST)) in kube.commands


@pytest.mark.parametrize("named", ["no_proxy", "NO_PROXY"])
def test_no_proxy_is_asked_for_the_machine_itself(kube, monkeypatch, named):
    monkeypatch.setenv(named, "intern.example")
    assert demo.main() == 0
    for host in ("127.0.0.1", "localhost", "intern.example"):
        assert urllib.request.proxy_bypass(host), host
    assert not urllib.request.proxy_bypass("other.example")
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"]


def test_where_no_host_goes_by_a_proxy_none_does(kube, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    assert demo.main() == 0
    assert urllib.request.proxy_bypass("other.example")


FAILURES = {
    "a step that fails": (StepFailed("no second pod"), "no second pod"),
    "a cluster that does not start": (ClusterError("Port 6443 is taken."), "Port 6443 is taken."),
    "a store that refuses": (
        botocore.exceptions.ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "ListBuckets"),
        "AccessDenied",
    ),
    "a field that is missing": (KeyError("buildSeconds"), "KeyError: 'buildSeconds'"),
}


@pytest.mark.parametrize(("failure", "said"), FAILURES.values(), ids=FAILURES)
def test_any_failure_is_told_with_the_clusters_own_word(kube, monkeypatch, capsys, failure, said):
    stage.FIGURES.write_text("{}")

    def fail(*arguments):
        raise failure

    monkeypatch.setattr(steps, "serve", fail)
    kube.objects["events"] = [
        {
            "metadata": {"creationTimestamp": "2026-11-29T12:00:00Z"},
            "involvedObject": {"name": "smollm2-r-1-0"},
            "reason": "FailedScheduling",
            "message": "0/1 nodes are available.",
        }
    ]
    assert demo.main() == 1
    told = capsys.readouterr().err
    assert said in told
    assert "event smollm2-r-1-0: FailedScheduling: 0/1 nodes are available." in told
    assert not stage.FIGURES.exists(), "no figures of an earlier run are left"


def test_a_failure_before_the_kinds_are_there_is_told_too(kube, monkeypatch, capsys):
    def fail(*arguments):
        raise StepFailed("helm timed out")

    monkeypatch.setattr(stage, "install_chart", fail)
    kube.broken["completionmodels"] = GONE
    kube.objects["pods"] = [{"metadata": {"name": "hotstart-operator-1"}, "status": {"phase": "Pending"}}]
    assert demo.main() == 1
    told = capsys.readouterr().err
    assert told.index("helm timed out") < told.index("pod hotstart-operator-1: Pending")
    assert "log hotstart-operator-1 --all-containers --tail=15" in told


def test_ctrl_c_is_no_failure_to_diagnose(kube, monkeypatch, capsys):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(steps, "serve", interrupt)
    assert demo.main() == 130
    assert "make down" in capsys.readouterr().err


def test_another_port_is_said_at_the_end(kube, monkeypatch, capsys):
    monkeypatch.setattr(stage, "forward_router", lambda cluster: "http://127.0.0.1:40001")
    assert demo.main() == 0
    said = capsys.readouterr().out
    assert f"where the README says {stage.ROUTER_URL}, it is http://127.0.0.1:40001 here" in said
    assert "curl http://127.0.0.1:40001/v1/completions" in said
