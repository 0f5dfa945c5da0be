"""What a cluster could leave on a machine, seen from outside it: compared before and after."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hotstart.cluster import cgroups, lifecycle, processes
from hotstart.cluster.layout import Layout

# These change by themselves on a machine that is in use.
RESTLESS = ("random", "ns_last_pid", "dentry-state", "file-nr", "inode-nr", "inode-state", "_count", "pty/nr", "quota")
NAMESPACES = ("pid", "net", "mnt")


@dataclass(frozen=True)
class Traces:
    """Everything but processes and cgroups, which are looked for by the cluster's own marks."""

    mounts: frozenset[str]
    links: frozenset[str]
    tables: frozenset[str]
    sysctls: frozenset[tuple[str, str]]


def _printed(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def _mounts() -> frozenset[str]:
    rows = (line.split(" ") for line in Path("/proc/self/mountinfo").read_text().splitlines())
    # buildah may be at work on the same machine.
    return frozenset(row[4] for row in rows if "/containers/storage" not in row[4] and "buildah" not in row[4])


def _sysctls() -> frozenset[tuple[str, str]]:
    seen = []
    for place in (found for name in ("kernel", "vm", "net") for found in Path("/proc/sys", name).rglob("*")):
        if place.is_file() and place.stat().st_mode & 0o400 and not any(mark in str(place) for mark in RESTLESS):
            try:
                seen.append((str(place), place.read_text()))
            except OSError:
                continue
    return frozenset(seen)


def look() -> Traces:
    links = frozenset(line.split(":")[1].strip() for line in _printed("ip", "-oneline", "link"))
    return Traces(_mounts(), links, frozenset(_printed("nft", "list", "tables")), _sysctls())


def namespaces(pid: int) -> frozenset[str]:
    return frozenset(str(Path(f"/proc/{pid}/ns/{name}").readlink()) for name in NAMESPACES)


def left_processes(layout: Layout, known: frozenset[str]) -> list[str]:
    """Processes that live in the namespaces, or that name the cluster's folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            theirs = namespaces(int(entry.name))
        except OSError:
            continue
        named = str(layout.root) in line and "hotstart.cluster" in line
        if named or theirs & known:
            found.append(f"{entry.name} {line}")
    return found


def _wait_until(what: str, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.05)


class Machine:
    """The machine as it was when the test began, and what has come to it since."""

    def __init__(self) -> None:
        self._before = look()

    def namespaces_of(self, layout: Layout) -> frozenset[str]:
        """The namespaces of the cluster in the folder."""
        init = processes.read(layout.node(0).init_file)
        assert init is not None
        return namespaces(init.pid) - namespaces(os.getpid())

    def processes_of(self, layout: Layout, known: frozenset[str]) -> list[str]:
        return left_processes(layout, known)

    def left(self, layout: Layout, known: frozenset[str]) -> list[str]:
        """All that a cluster left; an empty list is what every end must come to."""
        before, after = self._before, look()
        return [
            *left_processes(layout, known),
            *(str(place) for place in cgroups.present(layout.cgroup)),
            *sorted(after.mounts - before.mounts),
            *sorted(after.links - before.links),
            *sorted(after.tables - before.tables),
            *sorted(f"{name}={value}" for name, value in after.sysctls - before.sysctls),
        ]

    def wait_until(self, what: str, holds: Callable[[], bool]) -> None:
        _wait_until(what, holds)

    def wait_nothing_left(self, layout: Layout, known: frozenset[str]) -> None:
        """Wait until the machine is as it was; say what is left if that does not come."""
        deadline = time.monotonic() + 30
        while found := self.left(layout, known):
            assert time.monotonic() < deadline, "\n".join(found)
            time.sleep(0.1)


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def wait_until() -> Callable[[str, Callable[[], bool]], None]:
    """Wait for a condition, named for the failure."""
    return _wait_until


@pytest.fixture
def layout() -> Iterator[Layout]:
    """A folder for a cluster on the disk of the checkout: containers cannot layer on tmpfs."""
    parent = Path("build/tests").resolve()
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="cluster-", dir=parent))
    yield Layout(folder)
    lifecycle.down(folder)
    shutil.rmtree(folder, ignore_errors=True)
