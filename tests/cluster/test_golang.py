"""The Go that builds the programs: which one is taken, what its progress looks like, and that it dies with `up`."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hotstart.cluster import binaries, golang, processes, tools
from hotstart.cluster.errors import ClusterError
from hotstart.cluster.golang import Go

WaitUntil = Callable[[str, Callable[[], bool]], None]


def write_go(folder: Path, version: str, build: str = "exit 0") -> Path:
    """A Go that says its version, and whose build is a line of shell; "$OUT" is where it is to write."""
    place = folder / "go"
    folder.mkdir(parents=True, exist_ok=True)
    place.write_text(
        f"""#!/bin/sh
if [ "$1" = env ]; then echo go{version}; exit; fi
for word; do [ -z "$next" ] || OUT=$word; next=; [ "$word" != -o ] || next=yes; done
{build}
"""
    )
    place.chmod(0o755)
    return place


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of this Python, as if it had nothing else in it."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv/python"))
    return tmp_path / "venv"


@pytest.mark.parametrize(
    ("in_path", "beside_python", "taken"),
    [
        ("1.25.1", None, "path"),
        ("1.26.0", "1.27.3", "path"),
        ("1.19.8", "1.27.3", "venv"),
        (None, "1.27.3", "venv"),
        ("1.19.8", "1.20.1", "path"),
    ],
)
def test_the_first_go_that_is_new_enough_is_taken(
    tmp_path: Path, beside: Path, in_path: str | None, beside_python: str | None, taken: str
) -> None:
    for folder, version in ((tmp_path / "path", in_path), (beside, beside_python)):
        if version:
            write_go(folder, version)

    found = golang.find({"PATH": str(tmp_path / "path")})

    assert found is not None
    assert found.command == str(tmp_path / taken / "go")


def test_without_any_go_there_is_none(tmp_path: Path, beside: Path) -> None:
    assert golang.find({"PATH": str(tmp_path)}) is None


def test_missing_go_names_both_remedies() -> None:
    problem = golang.problem((tools.HELM,), None)

    assert problem is not None
    assert "install Go" in problem
    assert "KUBEBUILDER_ASSETS" in problem
    assert "Go 1.20 is too old" in (golang.problem((tools.HELM,), Go("/bin/go", (1, 20))) or "")
    assert golang.problem((), None) is None
    assert golang.problem((tools.HELM,), Go("/bin/go", tools.GO_MINIMUM)) is None


def test_what_no_folder_can_bring_is_not_looked_for_in_one() -> None:
    problem = golang.problem((tools.COREDNS, tools.PAUSE), None)

    assert problem is not None
    assert "install Go" in problem
    assert "KUBEBUILDER_ASSETS" not in problem
    assert problem.endswith(".")


def test_progress_is_what_go_did_last() -> None:
    downloads = "go: downloading k8s.io/api v0.35.4\ngo: downloading k8s.io/kubectl v0.35.4\n"

    assert golang.progress("") == "nothing compiled yet"
    assert golang.progress(downloads) == "2 modules, downloading k8s.io/kubectl v0.35.4"
    assert (
        golang.progress(downloads + "unicode\nk8s.io/api/core/v1\n")
        == "2 packages compiled, the last k8s.io/api/core/v1"
    )


def test_a_long_build_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golang, "PROGRESS_SECONDS", 0.05)
    told = tmp_path / "told"
    go = write_go(
        tmp_path, "1.26.0", f'echo k8s.io/api >&2; while [ ! -e "{told}" ]; do sleep 0.05; done; touch "$OUT/helm"'
    )
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if "1 packages compiled, the last k8s.io/api" in text:
            told.touch()

    binaries.build(tools.HELM, Go(str(go), (1, 26)), tmp_path / "cache", say)

    assert binaries.cached(tools.HELM, tools.HELM.programs[0], tmp_path / "cache")
    assert said[0].startswith("building helm")


def test_a_failed_build_says_its_errors_and_not_its_packages(tmp_path: Path) -> None:
    go = write_go(tmp_path, "1.26.0", "echo main.go:1:1: oh no; echo k8s.io/api; echo k8s.io/kubectl; exit 1")

    with pytest.raises(ClusterError, match=r"helm\.log:\nmain\.go:1:1: oh no$"):
        binaries.build(tools.HELM, Go(str(go), (1, 26)), tmp_path / "cache", lambda text: None)


def test_a_build_dies_with_whoever_ordered_it(tmp_path: Path, wait_until: WaitUntil) -> None:
    number = tmp_path / "number"
    write_go(tmp_path, "1.26.0", f"echo $$ >{number}.new; mv {number}.new {number}; exec sleep 1000")
    ordering = """
import sys
from pathlib import Path
from hotstart.cluster import binaries, tools
from hotstart.cluster.golang import Go
binaries.build(tools.HELM, Go(sys.argv[1] + "/go", (1, 26)), Path(sys.argv[1]) / "cache", print)
"""
    up = subprocess.Popen((sys.executable, "-c", ordering, str(tmp_path)), stdout=subprocess.DEVNULL)
    try:
        wait_until("the build", number.exists)
        go = processes.process(int(number.read_text()))
        assert go is not None
    finally:
        up.kill()
        up.wait()
    try:
        wait_until("the end of Go", lambda: not go.alive)
    finally:
        processes.end(go, signal.SIGKILL)
