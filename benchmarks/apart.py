"""A benchmark's step in a process of its own, with the most memory that it took."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SAMPLE_SECONDS = 0.01


def run_apart(program: str, *arguments: str) -> tuple[dict[str, Any], float]:
    """Runs ``program --child ARGUMENTS``, which prints its figures as JSON: the figures, and its peak of anonymous
    memory in MB (what is not the page cache of a mapped file), looked at every 10 ms.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    command = (sys.executable, program, "--child", *arguments)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, status_kb(process.pid, "RssAnon"))
            time.sleep(SAMPLE_SECONDS)
        output = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return json.loads(output), round(peak / 1000, 1)


def peak_megabytes() -> float:
    """Most resident memory of this process so far (``ru_maxrss`` would count the parent's before the exec too)."""
    return round(status_kb("self", "VmHWM") / 1000, 1)


def status_kb(pid: int | str, field: str) -> int:
    """A figure in kB of a process; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(field)), 0)
