"""Drives the sweeps: clients in threads, each sending its next request when the last one is answered.

No two prompts begin alike, so that no cache of prefixes makes a request faster than it will be.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Protocol

from hotstart.engines.calibrate.plan import LONE_REQUESTS, SWEEPS, SweepPlan, decide_steps, expected_seconds, is_wanted
from hotstart.engines.calibrate.samples import Step, StepResult, Timing

log = logging.getLogger(__name__)
Clock = Callable[[], float]
OnShare = Callable[[float], None]  # the share of the budget that is spent, 0 to 1


class Submit(Protocol):
    """One way to a completion model."""

    def __call__(self, prompt: Sequence[int], new_tokens: int) -> Timing:
        """One request, greedy and without stops; blocks until it is answered. Called from many threads at once.

        Raises:
            CalibrationFailed: the request failed, or generated another number of tokens.
        """


@dataclass
class Prompts:
    """Prompts of chance from a seed: tokens of ``vocabulary``, another first token or another order each time."""

    vocabulary: Sequence[int]
    seed: int = 0
    _random: random.Random = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def make(self, count: int) -> list[int]:
        """A prompt of ``count`` tokens."""
        with self._lock:
            return self._random.choices(self.vocabulary, k=count)


@dataclass(frozen=True)
class Sweeper:
    """Runs a plan against a completion model."""

    plan: SweepPlan
    submit: Submit
    prompts: Prompts
    clock: Clock = time.monotonic

    def run(self, on_share: OnShare) -> tuple[tuple[StepResult, ...], ...]:
        """All sweeps, within the plan's budget; one of one lone request where there is no time for more.

        Raises:
            CalibrationFailed: a request failed.
        """
        began = self.clock()
        lone = self._warm_up()
        left = self.plan.budget.seconds - (self.clock() - began)
        if SWEEPS * LONE_REQUESTS * lone.seconds > left:
            log.warning("a lone request is too slow for a sweep seconds=%.1f left=%.1f", lone.seconds, left)
            return ((lone,),)
        sweeps: list[tuple[StepResult, ...]] = []
        for number in range(SWEEPS):
            left = self.plan.budget.seconds - (self.clock() - began)
            deadline = self.clock() + left / (SWEEPS - number)
            sweeps.append(self._sweep(sweeps[-1] if sweeps else None, deadline, began, on_share))
        return tuple(sweeps)

    def _warm_up(self) -> StepResult:
        """A lone request after the first ones, which after a load are several times slower and tell nothing."""
        step = self.plan.steps[0]
        cold = replace(step, concurrency=self.plan.workers, requests=self.plan.workers)
        self._run_step(cold, least_seconds=0.0)
        return replace(self._run_step(replace(step, requests=1), least_seconds=0.0), step=step)

    def _sweep(
        self, earlier: tuple[StepResult, ...] | None, deadline: float, began: float, on_share: OnShare
    ) -> tuple[StepResult, ...]:
        done: list[StepResult] = []
        for step in decide_steps(self.plan, earlier):
            if earlier is None and not is_wanted(self.plan, step, done):
                continue
            if done and self.clock() + expected_seconds(self.plan, step, done) > deadline:
                continue
            done.append(self._run_step(step, least_seconds=self.plan.budget.step_seconds))
            on_share(min(1.0, (self.clock() - began) / self.plan.budget.seconds))
        return tuple(done)

    def _run_step(self, step: Step, *, least_seconds: float) -> StepResult:
        clients = _Clients(self, step, least_seconds, self.clock())
        with ThreadPoolExecutor(step.concurrency, thread_name_prefix="client") as pool:
            for client in [pool.submit(clients.work) for _ in range(step.concurrency)]:
                client.result()
        return StepResult(step, tuple(clients.timings), self.clock() - clients.began)


@dataclass
class _Clients:
    """The clients of one step, and what they have measured together."""

    sweeper: Sweeper
    step: Step
    least_seconds: float
    began: float
    timings: list[Timing] = field(default_factory=list)
    _sent: int = 0
    _failed: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def work(self) -> None:
        """One client: requests until there are enough of them."""
        while self._may_send():
            prompt = self.sweeper.prompts.make(self.step.input_tokens)
            try:
                timing = self.sweeper.submit(prompt, self.step.new_tokens)
            except BaseException:
                self._failed = True
                raise
            with self._lock:
                self.timings.append(timing)

    def _may_send(self) -> bool:
        with self._lock:
            lasted = self.sweeper.clock() - self.began >= self.least_seconds
            if self._failed or (self._sent >= self.step.requests and lasted):
                return False
            self._sent += 1
            return True
