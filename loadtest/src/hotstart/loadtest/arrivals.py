"""When each request is meant to leave: the schedule of an open-loop run, computed before the first is sent.

Pure. A plan takes its arrivals from here; `drive` then sends each at its offset and never waits for an earlier one,
because a generator that waits for slow answers hides exactly the latencies that it was started to see (coordinated
omission; G. Tene, "How NOT to measure latency").
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

# Nearly three hours at 1000 requests a second; what is beyond it only fills the memory before the first is sent.
_MOST_ARRIVALS = 10_000_000


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of the schedule.

    offset: seconds from the start of the run at which the request is meant to leave.
    prompt: index into the plan's prompts.
    max_tokens: the most tokens that it asks for.
    context_tokens: wanted length of its prompt in tokens, where a trace gives one; None takes the prompt as it is.
    cancel: the client hangs up on this one after the plan's `cancel_after_s`.
    """

    offset: float
    prompt: int = 0
    max_tokens: int = 32
    context_tokens: int | None = None
    cancel: bool = False


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request of a recorded trace: `at` in seconds on any clock, token counts of its prompt and its answer."""

    at: float
    context_tokens: int
    generated_tokens: int


def constant_arrivals(rate: float, duration: float, *, max_tokens: int = 32) -> tuple[Arrival, ...]:
    """Return `rate` x `duration` arrivals at equal distances of 1/`rate` seconds, the first at 0.

    Raises ValueError when rate or duration is not positive, or together too small for one request or too large.
    """
    _check_rate(rate, duration)
    count = math.floor(rate * duration + 1e-9)  # 0.1 x 30 s is 3 requests, whatever binary fractions make of it
    if count == 0:
        raise ValueError(f"--rate {rate:g} for --duration {duration:g}s is less than one request; raise one of them")
    return tuple(Arrival(index / rate, max_tokens=max_tokens) for index in range(count))


def poisson_arrivals(rate: float, duration: float, *, seed: int, max_tokens: int = 32) -> tuple[Arrival, ...]:
    """Return the arrivals of a Poisson process: independent exponential gaps of mean 1/`rate` seconds.

    The same seed gives the same schedule. Raises ValueError like `constant_arrivals`.
    """
    _check_rate(rate, duration)
    source = random.Random(seed)
    offsets: list[float] = []
    at = source.expovariate(rate)
    while at < duration:
        offsets.append(at)
        at += source.expovariate(rate)
    if not offsets:
        raise ValueError(
            f"--rate {rate:g} for --duration {duration:g}s gave no request with seed {seed}; raise one of them"
        )
    return tuple(Arrival(offset, max_tokens=max_tokens) for offset in offsets)


def trace_arrivals(
    rows: Sequence[TraceRow],
    *,
    speed: float = 1.0,
    limit: int | None = None,
    duration: float | None = None,
    max_tokens: int | None = None,
    max_context_tokens: int | None = None,
) -> tuple[Arrival, ...]:
    """Return the arrivals of a trace, `speed` times as fast as it was recorded; the first row leaves at 0.

    limit: the most rows taken, from the start. duration: only what falls into the first `duration` seconds of the run
    (after the speed-up). max_tokens, max_context_tokens: upper bounds on what the rows ask for.
    Raises ValueError when the trace is empty or a bound is not positive.
    """
    if not rows:
        raise ValueError("the trace holds no request")
    if not (speed > 0 and math.isfinite(speed)):
        raise ValueError(f"--speed must be a positive number, not {speed:g}")
    if limit is not None and limit < 1:
        raise ValueError(f"--limit must be at least 1, not {limit}")
    if duration is not None:
        _check_duration(duration)
    ordered = sorted(rows, key=lambda row: row.at)[:limit]
    start = ordered[0].at
    return tuple(
        Arrival(
            offset=(row.at - start) / speed,
            max_tokens=_bounded(row.generated_tokens, max_tokens),
            context_tokens=_bounded(row.context_tokens, max_context_tokens),
        )
        for row in ordered
        if duration is None or (row.at - start) / speed < duration
    )


def choose_prompts(arrivals: Sequence[Arrival], prompt_count: int, *, seed: int) -> tuple[Arrival, ...]:
    """Return the arrivals with a prompt each, drawn evenly from `prompt_count` prompts by `seed`."""
    if prompt_count < 1:
        raise ValueError("there is no prompt to choose from")
    source = random.Random(seed)
    return tuple(replace(arrival, prompt=source.randrange(prompt_count)) for arrival in arrivals)


def mark_cancels(arrivals: Sequence[Arrival], fraction: float, *, seed: int) -> tuple[Arrival, ...]:
    """Return the arrivals with `fraction` of them (rounded to a whole number) marked to be cancelled by the client."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"--cancel-fraction must lie between 0 and 1, not {fraction:g}")
    chosen = set(random.Random(seed).sample(range(len(arrivals)), round(fraction * len(arrivals))))
    return tuple(replace(arrival, cancel=index in chosen) for index, arrival in enumerate(arrivals))


def shard_arrivals(arrivals: Sequence[Arrival], processes: int) -> tuple[tuple[Arrival, ...], ...]:
    """Return one share for each of `processes` processes: each takes every `processes`-th arrival."""
    if processes < 1:
        raise ValueError(f"--processes must be at least 1, not {processes}")
    return tuple(tuple(arrivals[first::processes]) for first in range(processes))


def _check_rate(rate: float, duration: float) -> None:
    if not (rate > 0 and math.isfinite(rate)):
        raise ValueError(f"--rate must be a positive number of requests a second, not {rate:g}")
    _check_duration(duration)
    if rate * duration > _MOST_ARRIVALS:
        raise ValueError(
            f"--rate {rate:g} for --duration {duration:g}s is more than {_MOST_ARRIVALS} requests; lower one of them"
        )


def _check_duration(duration: float) -> None:
    if not (duration > 0 and math.isfinite(duration)):
        raise ValueError(f"--duration must be longer than zero, not {duration:g}s")


def _bounded(value: int, bound: int | None) -> int:
    return max(1, value if bound is None else min(value, bound))
