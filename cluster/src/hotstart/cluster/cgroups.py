"""The one thing of a cluster that Linux keeps when its namespaces end: cgroups. Made under one name, removed by it.

Both layouts of the kernel are known: one folder in each hierarchy of version 1, and one in that of version 2.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from hotstart.cluster.errors import ClusterError

CONTROLLERS = ("cpu", "cpuset", "memory", "pids", "hugetlb")


def hierarchies(mounts: str) -> tuple[tuple[str, Path], ...]:
    """Type and place of every cgroup hierarchy in the text of /proc/self/mounts."""
    rows = (line.split() for line in mounts.splitlines())
    return tuple((row[2], Path(row[1])) for row in rows if len(row) > 2 and row[2] in ("cgroup", "cgroup2"))


def here() -> tuple[tuple[str, Path], ...]:
    return hierarchies(Path("/proc/self/mounts").read_text())


def make(name: str) -> None:
    """Make the cluster's cgroup in every hierarchy; the kubelet wants it to stand before it starts."""
    for kind, root in here():
        if kind == "cgroup2":
            _hand_down_controllers(root)
        (root / name).mkdir(exist_ok=True)


def _hand_down_controllers(root: Path) -> None:
    available = (root / "cgroup.controllers").read_text().split()
    enabled = (root / "cgroup.subtree_control").read_text().split()
    for controller in CONTROLLERS:
        if controller in available and controller not in enabled:
            (root / "cgroup.subtree_control").write_text(f"+{controller}")


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
            return
        if time.monotonic() > deadline:
            raise ClusterError(f"A process still runs in {left[0]}: end it, then run `hotstart-cluster down` again.")
        time.sleep(0.02)
