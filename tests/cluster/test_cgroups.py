"""The cluster's cgroups: version 2 by a folder that behaves as its files do, a closed one for real."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hotstart.cluster import cgroups
from hotstart.cluster.errors import ClusterError
from hotstart.cluster.layout import Layout

# Runs its arguments where every cgroup hierarchy is mounted read-only.
CLOSED = (
    *("unshare", "--mount", "--propagation=private", "sh", "-c"),
    'for m in $(findmnt -rn -t cgroup,cgroup2 -o TARGET); do mount -o remount,bind,ro "$m"; done; exec "$@"',
    "sh",
    sys.executable,
    "-m",
)


def test_both_cgroup_layouts_are_known() -> None:
    text = "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\nx / ext4 rw 0 0"

    assert cgroups.hierarchies(text) == (
        ("cgroup", Path("/sys/fs/cgroup/cpu")),
        ("cgroup2", Path("/sys/fs/cgroup/unified")),
    )


class VersionTwo:
    """A folder in place of the root of version 2: a switched controller is seen there, and may be held by others."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.held = root, set[str]()
        (root / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
        (root / "cgroup.subtree_control").write_text("memory\n")
        (root / "cgroup.procs").write_text("")
        self.record = root.with_name("record")
        monkeypatch.setattr(cgroups, "here", lambda: (("cgroup2", root),))
        monkeypatch.setattr(cgroups, "RECORD", self.record)
        monkeypatch.setattr(cgroups, "_switch", self.switch)

    @property
    def enabled(self) -> set[str]:
        return set((self.root / "cgroup.subtree_control").read_text().split())

    def switch(self, root: Path, change: str) -> None:
        if change[1:] in self.held:
            raise OSError(errno.EBUSY, "Device or resource busy")
        enabled = self.enabled | {change[1:]} if change[0] == "+" else self.enabled - {change[1:]}
        (root / "cgroup.subtree_control").write_text(" ".join(sorted(enabled)))

    def become_a_containers(self) -> None:
        (self.root / "cgroup.type").write_text("domain\n")
        (self.root / "cgroup.procs").write_text("1\n")


@pytest.fixture
def version_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VersionTwo:
    (tmp_path / "cgroup").mkdir()
    return VersionTwo(tmp_path / "cgroup", monkeypatch)


def test_controllers_are_handed_down_and_put_back_with_the_last_cluster(version_two: VersionTwo) -> None:
    cgroups.make("hotstart-one")
    cgroups.make("hotstart-two")
    assert version_two.enabled == {"cpu", "cpuset", "memory", "pids"}

    cgroups.remove("hotstart-one")
    assert version_two.enabled == {"cpu", "cpuset", "memory", "pids"}

    cgroups.remove("hotstart-two")
    assert version_two.enabled == {"memory"}
    assert not version_two.record.exists()
    assert not list(version_two.root.glob("hotstart-*"))


def test_a_controller_that_others_have_come_to_need_stays_enabled(version_two: VersionTwo) -> None:
    cgroups.make("hotstart-one")
    version_two.held.add("cpu")

    cgroups.remove("hotstart-one")

    assert version_two.enabled == {"cpu", "memory"}


def test_processes_in_a_containers_root_are_told_before_anything_is_changed(version_two: VersionTwo) -> None:
    assert cgroups.problem() is None
    version_two.become_a_containers()

    assert "--cgroupns=host" in (cgroups.problem() or "")


def test_a_busy_root_is_one_sentence(version_two: VersionTwo) -> None:
    version_two.held.add("cpu")

    with pytest.raises(ClusterError, match="--cgroupns=host"):
        cgroups.make("hotstart-one")


def test_a_machine_without_cgroups_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "here", lambda: ())

    assert "--api-only" in (cgroups.problem() or "")


@pytest.mark.integration
def test_up_says_that_cgroups_are_closed_and_makes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"

    ended = subprocess.run(
        (*CLOSED, "hotstart.cluster.cli", "up", "--dir", str(folder)), capture_output=True, text=True, check=False
    )

    assert ended.returncode == 1
    assert "No cgroup can be made in /sys/fs/cgroup" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not folder.exists()


@pytest.mark.integration
def test_a_keeper_that_cannot_make_cgroups_says_so_to_up(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    lifeline, lifeline_write = os.pipe()
    progress, progress_write = os.pipe()
    try:
        keeper = (*CLOSED, "hotstart.cluster.keeper", str(tmp_path), str(lifeline), str(progress_write), "whole")
        subprocess.run(keeper, pass_fds=(lifeline, progress_write), check=True)
        os.close(progress_write)
        with os.fdopen(progress) as told:
            assert "No cgroup can be made" in json.loads(told.read())["error"]
        assert not cgroups.present(layout.cgroup)
    finally:
        os.close(lifeline)
        os.close(lifeline_write)
