"""What the figures of a run hang on besides the server: the machine that sent, and whether it had its processors."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class ProcessorTimes:
    """Counters of /proc/stat since boot, in ticks: all of the processors' time, what the hypervisor gave others, and
    what nobody used."""

    total: int
    stolen: int
    idle: int = 0  # with what waited for disks

    def idle_since(self, before: "ProcessorTimes") -> float:
        """Return the share of the processors' time since ``before`` in which nothing ran."""
        return (self.idle - before.idle) / max(1, self.total - before.total)


def describe_machine() -> dict[str, Any]:
    """Return cores, processor, kernel and Python, as flat keys. No name of a host or a person."""
    return {
        "machine_cores": os.cpu_count(),
        "machine_processor": _processor_name(),
        "machine_system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def gather_processor_times() -> ProcessorTimes | None:
    """Return the counters of now, or None where the system does not tell them (not Linux)."""
    try:
        line = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
    except OSError:
        return None
    return parse_processor_times(line)


def parse_processor_times(line: str) -> ProcessorTimes | None:
    """Return the counters in the `cpu` line of /proc/stat: user nice system idle iowait irq softirq steal (proc(5))."""
    fields = [int(number) for number in line.split()[1:9]]
    return ProcessorTimes(sum(fields), fields[7], fields[3] + fields[4]) if len(fields) == 8 else None


def stolen_share(before: ProcessorTimes | None, after: ProcessorTimes | None) -> float | None:
    """Return the share of the processors' time that the hypervisor took between the two, or None if unknown."""
    if before is None or after is None or after.total <= before.total:
        return None
    return (after.stolen - before.stolen) / (after.total - before.total)


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
