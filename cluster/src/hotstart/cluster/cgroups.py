"""The one thing of a cluster that Linux keeps when its namespaces end: cgroups. Made under one name, removed by it.

Both layouts of the kernel are known: one folder in each hierarchy of version 1, and one in that of version 2, whose
root must hand its controllers down. Version 2 alone has never been run.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hotstart.cluster.errors import ClusterError
from hotstart.cluster.layout import CGROUP_PREFIX

CONTROLLERS = ("cpu", "cpuset", "memory", "pids", "hugetlb")
# Which controllers clusters enabled at version 2's root: like that state itself, gone with a restart of the machine.
RECORD = Path("/run/hotstart-cgroup-controllers")


def hierarchies(mounts: str) -> tuple[tuple[str, Path], ...]:
    """Type and place of every cgroup hierarchy in the text of /proc/self/mounts."""
    rows = (line.split() for line in mounts.splitlines())
    return tuple((row[2], Path(row[1])) for row in rows if len(row) > 2 and row[2] in ("cgroup", "cgroup2"))


def here() -> tuple[tuple[str, Path], ...]:
    return hierarchies(Path("/proc/self/mounts").read_text())


def problem() -> str | None:
    """Why the cluster's cgroups cannot be made here, in one sentence; looks and changes nothing."""
    found = here()
    if not found:
        return "No cgroups are mounted: mount them at /sys/fs/cgroup, or start the API server alone with --api-only."
    for kind, root in found:
        if not os.access(root, os.W_OK | os.X_OK):
            return _unwritable(root, "it is not writable")
        if kind == "cgroup2" and _missing_controllers(root) and _occupied(root):
            return _cannot_hand_down(root)
    return None


def _unwritable(root: Path, why: str) -> str:
    return (
        f"No cgroup can be made in {root} ({why}): mount it writable (in a container: run it privileged), "
        "or start the API server alone with --api-only."
    )


def _cannot_hand_down(root: Path) -> str:
    return (
        f"The controllers of {root} cannot be enabled while processes run in that cgroup itself, as in a container: "
        "move them into a cgroup below it, or give the container the machine's own cgroups (--cgroupns=host)."
    )


def _occupied(root: Path) -> bool:
    """Whether processes in a cgroup that is not the machine's root forbid enabling controllers below it."""
    return (root / "cgroup.type").exists() and bool((root / "cgroup.procs").read_text().strip())


def _missing_controllers(root: Path) -> tuple[str, ...]:
    available = (root / "cgroup.controllers").read_text().split()
    enabled = (root / "cgroup.subtree_control").read_text().split()
    return tuple(name for name in CONTROLLERS if name in available and name not in enabled)


def make(name: str) -> None:
    """Make the cluster's cgroup in every hierarchy; the kubelet wants it to stand before it starts."""
    for kind, root in here():
        try:
            (root / name).mkdir(exist_ok=True)
            if kind == "cgroup2":
                _hand_down_controllers(root)
        except OSError as error:
            busy = kind == "cgroup2" and error.errno == errno.EBUSY
            raise ClusterError(_cannot_hand_down(root) if busy else _unwritable(root, str(error))) from error


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One cluster at a time changes what the root hands down."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _switch(root: Path, change: str) -> None:
    (root / "cgroup.subtree_control").write_text(change)


def _hand_down_controllers(root: Path) -> None:
    with _alone(root):
        for controller in _missing_controllers(root):
            _switch(root, f"+{controller}")
            with RECORD.open("a") as record:
                record.write(f"{controller}\n")


def _put_back_controllers(root: Path) -> None:
    """Disable what clusters enabled, once the last of them is gone."""
    if not RECORD.exists():
        return
    with _alone(root):
        if not RECORD.exists() or any(root.glob(f"{CGROUP_PREFIX}*")):
            return
        for controller in RECORD.read_text().split():
            try:
                _switch(root, f"-{controller}")
            except OSError as error:
                # Another program's cgroups have come to need it.
                print(f"{controller} stays enabled in {root}: {error}", flush=True)
        RECORD.unlink()


def present(name: str) -> tuple[Path, ...]:
    return tuple(root / name for _, root in here() if (root / name).is_dir())


def _remove_tree(top: Path) -> bool:
    """Remove a cgroup and those under it; False while a process of it has not quite ended."""
    try:
        for folder, _, _ in os.walk(top, topdown=False):
            Path(folder).rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def remove(name: str, seconds: float = 10.0) -> None:
    """Remove the cluster's cgroups everywhere, waiting for the last of its processes."""
    deadline = time.monotonic() + seconds
    while left := present(name):
        removed = [_remove_tree(top) for top in left]
        if all(removed):
            break
        if time.monotonic() > deadline:
            raise ClusterError(f"A process still runs in {left[0]}: end it, then run `hotstart-cluster down` again.")
        time.sleep(0.02)
    for kind, root in here():
        if kind == "cgroup2":
            _put_back_controllers(root)
