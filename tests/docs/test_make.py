"""`make` and `make bench` work on the demo's own cluster and images, whatever a person's shell is set to."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hotstart.cluster.layout import Layout

ROOT = Path(__file__).resolve().parents[2]
OTHER = {
    "HOTSTART_CLUSTER_DIR": "/srv/other",
    "REGISTRY": "registry.example.com",
    "TAG": "0.1.0",
    "MAKEFLAGS": "",  # of the make that runs the tests
}


def show(*arguments):
    """What make would do, in the shell of somebody who has another cluster and another registry."""
    command = ("make", "--dry-run", "--no-print-directory", *arguments)
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **OTHER}, capture_output=True, text=True, check=True
    ).stdout


def load_benchmark(name, monkeypatch):
    """A file of benchmarks/ as a module; they import one another by their bare names."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_down_ends_the_demos_cluster_and_no_other():
    assert "hotstart-cluster down --dir build/cluster" in show("down")


@pytest.mark.parametrize("goal", ["test", "demo", "bench"])
def test_the_images_that_are_built_are_those_that_are_run(goal):
    told = show(goal, "--eval", "images: told", "--eval", 'told: ; +@echo "named $$REGISTRY/control:$$TAG"')
    assert "named localhost/hotstart/control:dev\n" in told


def test_images_for_elsewhere_keep_their_names():
    told = show("images", "--eval", "images: told", "--eval", 'told: ; +@echo "named $$REGISTRY/control:$$TAG"')
    assert "named registry.example.com/control:0.1.0\n" in told


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """benchmarks/run.py with nothing that it runs, and the commands that it would."""
    module = load_benchmark("run", monkeypatch)
    commands = {}

    def run(name, *arguments):
        commands[name] = arguments
        return True

    monkeypatch.setattr(module, "run", run)
    monkeypatch.setattr(module, "wait_idle", lambda: None)
    monkeypatch.setattr(module, "BENCH", tmp_path / "bench")
    monkeypatch.setattr(module, "CLUSTER", tmp_path / "cluster")
    module.BENCH.mkdir()
    module.CLUSTER.mkdir()
    return module, commands


def test_the_benchmarks_end_the_cluster_that_they_looked_at(bench):
    module, commands = bench
    assert module.main() == 0
    assert commands["down"][-2:] == ("--dir", str(module.CLUSTER))


def test_the_demo_is_run_where_a_cluster_has_died(bench):
    module, commands = bench
    Layout(module.CLUSTER).keeper_file.write_text('{"pid": 999999999, "started": 1}')
    Layout(module.CLUSTER).cluster_file.write_text("{}")
    assert module.main() == 0
    assert "demo" in commands


def test_no_figures_of_an_earlier_run_are_told(bench, capsys):
    module, _ = bench
    (module.BENCH / "key.json").write_text('{"goals": {"ms": {"value": 1, "goal": "at most 2", "met": true}}}')
    assert module.main() == 0
    assert "met" not in capsys.readouterr().out


def test_a_missed_goal_of_the_conversion_is_no_failure(monkeypatch):
    module = load_benchmark("convert_mpt", monkeypatch)
    monkeypatch.setattr(module, "measure", lambda *arguments: False)
    monkeypatch.setattr(sys, "argv", ["convert_mpt.py"])
    assert module.main() == 0


def test_a_missed_goal_of_the_reference_is_no_failure(monkeypatch):
    module = load_benchmark("reference", monkeypatch)
    missed = module.Run(1.0, 1, 1, 1.0, module.GOAL_MB + 1.0)
    monkeypatch.setattr(module, "write_checkpoint", lambda *arguments: None)
    monkeypatch.setattr(module, "run_once", lambda *arguments: missed)
    monkeypatch.setattr(module.record, "write", lambda *arguments: None)
    monkeypatch.setattr(sys, "argv", ["reference.py"])
    assert module.main() == 0
