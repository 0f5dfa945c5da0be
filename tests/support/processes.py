"""Processes of pods as this machine sees them, for tests that kill them."""

from __future__ import annotations

from pathlib import Path

import pytest


def find_process(pod_uid: str, command: str) -> int:
    """The process id, on this machine, of a pod's process; ``command`` is its name as the kernel keeps it."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            cgroup, name = (entry / "cgroup").read_text(), (entry / "comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if name == command and pod_uid in cgroup:
            return int(entry.name)
    pytest.fail(f"no process {command} in pod {pod_uid}")
