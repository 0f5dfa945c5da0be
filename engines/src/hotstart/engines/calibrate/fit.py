"""Samples -> profile. Pure.

Lone latencies and the speed of reading are medians; the P95 at so many clients is that of all sweeps together, by
nearest rank, so that few samples give their largest; and a P95 is never below that of fewer clients. Noise is the
largest relative difference between the medians of two sweeps at the same step of the longest input: what decisions rest
on. Interference can only make an engine look slower, so a noisy profile errs to the safe side, and says so.

Where even a lone request was too slow for two sweeps, the profile has that one figure, and calls itself noisy.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from hotstart.engines.calibrate.plan import SweepPlan
from hotstart.engines.calibrate.samples import MEDIAN, CalibrationFailed, Step, StepResult, Timing, percentile
from hotstart.engines.profile import PROFILE_PERCENTILE, LoadPoint, LonePoint, Profile

UNREPEATED = 1.0  # the noise of what was measured once
TOLERANCE = 0.25  # medians of two sweeps on a quiet machine differ by a few per cent; beyond this something interferes


@dataclass(frozen=True)
class Machine:
    """What the profile holds for: CPUs that the engine could use (cores; 0: a GPU), and its threads."""

    cpus: float = 0.0
    inter_threads: int = 1
    intra_threads: int = 1


def fit(
    plan: SweepPlan,
    sweeps: Sequence[Sequence[StepResult]],
    machine: Machine,
    seconds: float,
    tolerance: float = TOLERANCE,
) -> Profile:
    """The profile of what every sweep measured. ``seconds``: what the whole calibration took.

    Raises:
        CalibrationFailed: not every sweep measured the longest lone request.
    """
    shared = find_shared(plan, sweeps)
    longest = [step for step in shared if step.input_tokens == plan.input_tokens]
    if not longest or longest[0].concurrency != 1:
        raise CalibrationFailed(
            f"within {plan.budget.seconds:.0f} s not even lone requests of {plan.input_tokens} + {plan.new_tokens} "
            "tokens could be measured: the engine is slower than its SLO by far, or the machine is overloaded"
        )
    lone = [step for step in shared if step.concurrency == 1]
    noise = UNREPEATED if len(sweeps) == 1 else max(measure_spread(sweeps, step) for step in longest)
    return Profile(
        input_tokens=plan.input_tokens,
        new_tokens=plan.new_tokens,
        prefill_tokens_per_second=round(percentile(list(map(read_speed, pool(sweeps, longest[0]))), MEDIAN), 1),
        lone=tuple(make_lone_point(sweeps, step) for step in lone),
        load=make_load_points(sweeps, longest),
        noise=round(noise, 4),
        tolerance=tolerance,
        seconds=round(seconds, 1),
        cpus=machine.cpus,
        inter_threads=machine.inter_threads,
        intra_threads=machine.intra_threads,
    )


def find_shared(plan: SweepPlan, sweeps: Sequence[Sequence[StepResult]]) -> list[Step]:
    """The steps that every sweep measured, in the plan's order."""
    measured = [{result.step for result in sweep if result.timings} for sweep in sweeps]
    return [step for step in plan.steps if measured and all(step in steps for steps in measured)]


def results_of(sweeps: Sequence[Sequence[StepResult]], step: Step) -> list[StepResult]:
    """The step's results, one a sweep."""
    return [result for sweep in sweeps for result in sweep if result.step == step]


def pool(sweeps: Sequence[Sequence[StepResult]], step: Step) -> list[Timing]:
    """All timings of the step."""
    return list(itertools.chain.from_iterable(result.timings for result in results_of(sweeps, step)))


def read_speed(timing: Timing) -> float:
    """Tokens/s at which the request's prompt was read: those that the completion model says, whatever was planned."""
    return timing.input_tokens * 1000 / max(timing.first_token_ms, 1e-3)


def make_lone_point(sweeps: Sequence[Sequence[StepResult]], step: Step) -> LonePoint:
    """The median latency of a lone request."""
    latency = percentile([timing.latency_ms for timing in pool(sweeps, step)], MEDIAN)
    return LonePoint(step.input_tokens, step.new_tokens, round(latency, 2))


def make_load_points(sweeps: Sequence[Sequence[StepResult]], steps: Sequence[Step]) -> tuple[LoadPoint, ...]:
    """P95 and speed by concurrency, ascending; the P95 never falls."""
    points: list[LoadPoint] = []
    for step in sorted(steps, key=lambda step: step.concurrency):
        slow = percentile([timing.latency_ms for timing in pool(sweeps, step)], PROFILE_PERCENTILE)
        speed = percentile([result.tokens_per_second for result in results_of(sweeps, step)], MEDIAN)
        least = points[-1].p95_ms if points else 0.0
        points.append(LoadPoint(step.concurrency, max(least, round(slow, 2)), round(speed, 1)))
    return tuple(points)


def measure_spread(sweeps: Sequence[Sequence[StepResult]], step: Step) -> float:
    """How far the sweeps' median latencies of the step are apart, relative to the smallest."""
    medians = [percentile(result.latencies, MEDIAN) for result in results_of(sweeps, step)]
    return (max(medians) - min(medians)) / max(min(medians), 1e-6)
