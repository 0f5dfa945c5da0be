"""What is asked and measured in one step of a sweep, and the figures of many requests. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MEDIAN = 50
READ_TOLERANCE = 0.05  # of a prompt's tokens may be missing, or a few: text that must be just so long is hard to find
FEW_TOKENS = 2


class CalibrationFailed(Exception):
    """Nothing that makes a profile could be measured; the text says why."""


class CannotCalibrate(CalibrationFailed):
    """Nor will it be, until engine or image is another."""


@dataclass(frozen=True)
class Step:
    """``concurrency`` clients, each sending its next request when the last one is answered; ``requests`` at least."""

    input_tokens: int
    new_tokens: int
    concurrency: int
    requests: int


@dataclass(frozen=True)
class Timing:
    """One request: tokens read and generated, ms until its first token was there, ms until its answer was."""

    input_tokens: int
    new_tokens: int
    first_token_ms: float
    latency_ms: float


@dataclass(frozen=True)
class StepResult:
    """All requests of one step, and the seconds that they took together."""

    step: Step
    timings: tuple[Timing, ...]
    seconds: float

    @property
    def latencies(self) -> list[float]:
        """Latencies in ms."""
        return [timing.latency_ms for timing in self.timings]

    @property
    def tokens_per_second(self) -> float:
        """Tokens that all clients together generated, per second."""
        return sum(timing.new_tokens for timing in self.timings) / self.seconds if self.seconds > 0 else 0.0


def percentile(values: Sequence[float], percent: int) -> float:
    """The nearest-rank percentile: a value that was measured, and with few of them the largest; 50 is the median.

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("no value to take a percentile of")
    if percent == MEDIAN:
        return statistics.median(values)
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


def make_timing(details: Mapping[str, Any], read: int, new: int, latency_ms: float) -> Timing:
    """What the completion model said of a request of ``read`` tokens, with the latency that its client saw (ms).

    Raises:
        CalibrationFailed: it read or generated fewer tokens than wanted.
    """
    if details["completion_tokens"] < new:
        raise CalibrationFailed(f"the engine generated {details['completion_tokens']} of {new} tokens")
    if details["prompt_tokens"] < read - max(FEW_TOKENS, read * READ_TOLERANCE):
        raise CalibrationFailed(
            f"of a prompt of {read} tokens {details['prompt_tokens']} were read, {details['trimmed_tokens']} cut off"
        )
    return Timing(
        input_tokens=details["prompt_tokens"],
        new_tokens=details["completion_tokens"],
        first_token_ms=details["prefill_ms"],
        latency_ms=latency_ms,
    )
