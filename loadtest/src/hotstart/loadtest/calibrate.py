"""How fast may this machine send and still be believed: the highest rate whose drift p99 stays under a limit.

Measured against a server that does nothing, so that the figure is the generator's. Stated beside a benchmark, it says
which part of a result could come from the tool.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hotstart.loadtest.fleet import run_in_processes
from hotstart.loadtest.machine import describe_machine
from hotstart.loadtest.null_server import serve_nothing
from hotstart.loadtest.plan import make_constant_plan
from hotstart.loadtest.result import LoadResult

_FIRST_RATE = 100.0
_STEPS_AFTER_FIRST_MISS = 4
# Seconds. The shortest is one request at the lowest rate that is tried, when the first and all after it miss; more than
# the longest is better spent on more runs, and would not fit into memory at high rates.
SHORTEST_STEP_S = 2 ** (_STEPS_AFTER_FIRST_MISS - 1) / _FIRST_RATE
LONGEST_STEP_S = 60.0
_RUN_KEYS = ("rate", "drift_p50_ms", "drift_p99_ms", "p50_ms", "p99_ms", "failed", "machine_stolen")


@dataclass(frozen=True)
class Calibration:
    """The rates tried, in their order, and the highest one that held (0 when none did). Rates in requests/s.

    `interrupted`: it was ended before its last rate, so that a higher one may hold; the last run was cut short.
    """

    max_rate: float
    drift_limit_s: float
    processes: int
    runs: tuple[LoadResult, ...]

    @property
    def interrupted(self) -> bool:
        return self.runs[-1].interrupted

    def to_json(self) -> dict[str, Any]:
        """Return the figures as flat keys, with the runs in short."""
        return {
            "max_rate": self.max_rate,
            "drift_limit_ms": self.drift_limit_s * 1e3,
            "processes": self.processes,
            "interrupted": self.interrupted,
            "realtime": self.runs[0].realtime,
            "started_at": self.runs[0].started_at.isoformat(timespec="seconds"),
            "runs": [{key: run.to_json()[key] for key in _RUN_KEYS} for run in self.runs],
            **describe_machine(),
        }


async def calibrate(
    *,
    processes: int = 1,
    drift_limit_s: float = 0.001,
    step_s: float = 5.0,
    attempts: int = 3,
    realtime: bool = True,
    tell: Callable[[LoadResult], None] | None = None,
    stop: asyncio.Event | None = None,
) -> Calibration:
    """Find the highest rate that holds the limit with no failure: doubled until it misses, then halved in between.

    step_s: length of each run in seconds, SHORTEST_STEP_S to LONGEST_STEP_S. attempts: a rate holds when most of so
    many runs do, because what else the machine and its hypervisor do delays runs at any rate. tell: called with the
    result of each. stop: when set, the search ends with what has held so far.
    """
    held, missed = 0.0, None
    rate = _FIRST_RATE
    runs: list[LoadResult] = []
    steps_left = _STEPS_AFTER_FIRST_MISS
    async with serve_nothing() as url:
        while steps_left:
            plan = make_constant_plan(url, "null", rate=rate, duration=step_s, max_tokens=1)
            plan = replace(plan, drift_limit_s=drift_limit_s)
            verdicts: list[bool] = []
            while (verdict := decide_held(verdicts, attempts)) is None:
                result = await run_in_processes(plan, processes, realtime=realtime, stop=stop)
                runs.append(result)
                if result.interrupted:
                    return Calibration(held, drift_limit_s, processes, tuple(runs))
                if tell is not None:
                    tell(result)
                verdicts.append(run_held(result))
            held, missed = (rate, missed) if verdict else (held, rate)
            rate = decide_next_rate(held, missed)
            steps_left -= missed is not None
    return Calibration(held, drift_limit_s, processes, tuple(runs))


def decide_held(verdicts: Sequence[bool], attempts: int) -> bool | None:
    """Return whether a rate held, by most of ``attempts`` runs, or None while the runs so far leave it open."""
    most = attempts // 2 + 1
    if sum(verdicts) >= most:
        return True
    return False if len(verdicts) - sum(verdicts) > attempts - most else None


def run_held(result: LoadResult) -> bool:
    """Return whether the generator was on time and the do-nothing server was reached by every request."""
    return not result.void and not result.summary.failed


def decide_next_rate(held: float, missed: float | None) -> float:
    """Return the rate to try next: twice the one that held while none has missed, else the middle of the two."""
    return held * 2 if missed is None else (held + missed) / 2
