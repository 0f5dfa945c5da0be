"""How many CPUs this process may use: the limit of its cgroup, as a container's ``resources.limits.cpu`` sets it."""

from __future__ import annotations

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def parse_cpu_max(text: str) -> float | None:
    """CPUs of cgroup v2's ``cpu.max`` ("70000 100000", "max 100000"); None where there is no limit. Pure."""
    quota, _, period = text.strip().partition(" ")
    return None if quota == "max" else int(quota) / int(period or 100_000)


def read_cpu_limit(root: Path = CGROUP) -> float | None:
    """CPUs that this process may use (cores): the smaller of its cgroup's quota and the CPUs it may run on.

    Both layouts are read, version 2 and version 1; the quota of a container is at the root of what it sees.
    """
    cores = float(len(os.sched_getaffinity(0)))
    unified, quota = root / "cpu.max", root / "cpu" / "cpu.cfs_quota_us"
    limit = None
    if unified.exists():
        limit = parse_cpu_max(unified.read_text())
    elif quota.exists():
        period = int((root / "cpu" / "cpu.cfs_period_us").read_text())
        limit = None if int(quota.read_text()) <= 0 else int(quota.read_text()) / period
    return cores if limit is None else min(cores, limit)
