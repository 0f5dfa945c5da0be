"""Where benchmarks leave their figures: build/bench/NAME.json with machine and date, medians of several runs.

What else the machine did is in each file: the load when the benchmark began, and the share of the processors' time that
the hypervisor took from it until it ended.
"""

from __future__ import annotations

import datetime
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotstart.loadtest.machine import describe_machine, gather_processor_times, stolen_share

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks share doubles and small engines with the tests
FOLDER = ROOT / "build" / "bench"
LOAD_BEFORE = os.getloadavg()[0]
TIMES_BEFORE = gather_processor_times()


@dataclass(frozen=True)
class Goal:
    """What a figure is to be: ``limit`` at most, or at least."""

    limit: float
    at_least: bool = False

    def is_met(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'at least' if self.at_least else 'at most'} {self.limit:g}"


def at_most(limit: float) -> Goal:
    """A figure that is to stay small."""
    return Goal(limit)


def at_least(limit: float) -> Goal:
    """A figure that is to be large."""
    return Goal(limit, at_least=True)


def median(values: Sequence[float]) -> float:
    """The median, rounded to four digits after the point."""
    return round(statistics.median(values), 4)


def write(name: str, figures: Mapping[str, Any], goals: Mapping[str, Goal] | None = None) -> None:
    """Prints the figures, and writes them with machine, date, commit and goals.

    Raises:
        KeyError: a goal is for a figure that is not there.
    """
    judged = {
        key: {"goal": str(goal), "value": figures[key], "met": goal.is_met(figures[key])}
        for key, goal in (goals or {}).items()
    }
    stolen = stolen_share(TIMES_BEFORE, gather_processor_times())
    facts = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": describe_commit(),
        **describe_machine(),
        "machine_load_before": round(LOAD_BEFORE, 2),
        "machine_stolen": None if stolen is None else round(stolen, 4),
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps({**facts, **figures, "goals": judged}, indent=2) + "\n")
    for key, value in figures.items():
        said = judged.get(key)
        tail = "" if said is None else f" (goal: {said['goal']}, {'met' if said['met'] else 'MISSED'})"
        print(f"{name}: {key} = {value}{tail}", flush=True)


def describe_commit() -> str:
    """The commit that was measured, with ``-dirty`` where something is not committed; '' outside a clone."""
    command = ("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()
