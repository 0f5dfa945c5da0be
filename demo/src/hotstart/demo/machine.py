"""What machine a figure was measured on, and when."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path


def describe_machine() -> dict[str, object]:
    """Date (UTC), processor, cores, memory in GiB and kernel: printed beside each figure."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    return {
        "date": now.isoformat(),
        "machine": f"{os.cpu_count()} cores, {cpu}, {memory:.0f} GiB, Linux {platform.release()}",
    }
