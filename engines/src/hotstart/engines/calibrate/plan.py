"""What a calibration measures, in which order, and when it is enough. Pure.

A sweep is one pass over the steps, the most telling first: a lone request of the longest input, a few of them at once,
lone ones of shorter inputs, then more and more at once. It is repeated, so that the spread tells how far it can be
trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hotstart.engines.calibrate.samples import MEDIAN, Step, StepResult, percentile
from hotstart.engines.profile import PROFILE_PERCENTILE
from hotstart.engines.recipe import EngineLimits
from hotstart.exchange.messages import ServingOptions

CONCURRENCIES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
LENGTH_PARTS = (1, 2, 4)  # the longest input, half of it, a quarter
LONE_REQUESTS = 3
FIRST_LOADS = 2  # steps of several clients before shorter inputs are of interest
ROUNDS = 2  # requests of each of several clients, at least
SLO_REACH = 2.0  # a P95 above so many SLOs: more requests at once are of no interest
SWEEPS = 2


@dataclass(frozen=True)
class Budget:
    """``seconds`` for all sweeps; ``step_seconds``: how long a step lasts at least, for fast engines."""

    seconds: float
    step_seconds: float


CPU_BUDGET = Budget(seconds=22.0, step_seconds=0.1)
GPU_BUDGET = Budget(seconds=55.0, step_seconds=1.0)


@dataclass(frozen=True)
class SweepPlan:
    """One sweep's steps in order. ``slo_ms`` bounds the concurrency of interest; ``workers`` are to be warmed up."""

    steps: tuple[Step, ...]
    budget: Budget
    slo_ms: int
    workers: int = 1

    @property
    def input_tokens(self) -> int:
        """The longest input (tokens)."""
        return self.steps[0].input_tokens

    @property
    def new_tokens(self) -> int:
        """Tokens that each request generates."""
        return self.steps[0].new_tokens


def make_plan(limits: EngineLimits, serving: ServingOptions, budget: Budget) -> SweepPlan:
    """The sweep for an engine of these limits that serves so."""
    longest = min(serving.max_input_tokens, limits.input_tokens)
    new = max(1, min(serving.max_new_tokens, limits.sequence_tokens - longest))
    lengths = sorted({max(1, longest // part) for part in LENGTH_PARTS}, reverse=True)
    lone = [Step(length, new, 1, LONE_REQUESTS) for length in lengths]
    load = [Step(longest, new, many, ROUNDS * many) for many in CONCURRENCIES if 1 < many <= limits.batch_size]
    steps = (lone[0], *load[:FIRST_LOADS], *lone[1:], *load[FIRST_LOADS:])
    return SweepPlan(steps, budget, serving.slo_ms, serving.inter_threads)


def find_busiest(plan: SweepPlan, done: Sequence[StepResult]) -> StepResult | None:
    """The result of the longest input with the most clients so far."""
    loaded = [result for result in done if result.step.input_tokens == plan.input_tokens]
    return max(loaded, key=lambda result: result.step.concurrency, default=None)


def is_wanted(plan: SweepPlan, step: Step, done: Sequence[StepResult]) -> bool:
    """Whether the step is of interest: not where fewer clients were already far too slow for the SLO."""
    busiest = find_busiest(plan, done)
    if step.concurrency == 1 or busiest is None:
        return True
    return percentile(busiest.latencies, PROFILE_PERCENTILE) <= plan.slo_ms * SLO_REACH


def expected_seconds(plan: SweepPlan, step: Step, done: Sequence[StepResult]) -> float:
    """How long the step is going to take (seconds), if more clients together are no slower than fewer were."""
    busiest = find_busiest(plan, done)
    if busiest is None:
        return plan.budget.step_seconds
    each = percentile(busiest.latencies, MEDIAN) / 1000 / busiest.step.concurrency
    return max(plan.budget.step_seconds, step.requests * each)


def decide_steps(plan: SweepPlan, earlier: Sequence[StepResult] | None) -> tuple[Step, ...]:
    """The steps of a sweep: all, or those that the sweep before it completed."""
    return plan.steps if earlier is None else tuple(result.step for result in earlier)
