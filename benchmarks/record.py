"""Where benchmarks leave their figures: build/bench/NAME.json with machine and date, medians of several runs."""

from __future__ import annotations

import datetime
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hotstart.loadtest.machine import describe_machine

FOLDER = Path(__file__).resolve().parent.parent / "build" / "bench"


def median(values: Sequence[float]) -> float:
    """The median, rounded to four digits after the point."""
    return round(statistics.median(values), 4)


def write(name: str, figures: Mapping[str, Any]) -> None:
    """Prints the figures, and writes them with machine and date."""
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps({"date": date, **describe_machine(), **figures}, indent=2) + "\n")
    for key, value in figures.items():
        print(f"{name}: {key} = {value}", flush=True)
