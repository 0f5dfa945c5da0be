"""The profile of an engine: what calibration measured, and what it says about an SLO. Pure, standard library only.

All latencies are of whole completions through the completion model, in milliseconds. Nothing here extrapolates: beyond
what was measured the answer is "not known" or the last figure that is.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

SLO_SHARE = 0.9  # of the SLO that the engine may take; the rest is the router's, the network's and Triton's
PROFILE_PERCENTILE = 95  # what LoadPoint.p95_ms is


@dataclass(frozen=True)
class LonePoint:
    """One request alone: its prompt's length (tokens), tokens generated, median latency (ms)."""

    input_tokens: int
    new_tokens: int
    latency_ms: float


@dataclass(frozen=True)
class LoadPoint:
    """So many requests at once, each of the profile's lengths: P95 (ms), tokens/s that all generate together."""

    concurrency: int
    p95_ms: float
    decode_tokens_per_second: float


@dataclass(frozen=True)
class Profile:
    """What one replica does. It holds for the ``cpus`` (0: GPU) and thread counts that it was measured with."""

    input_tokens: int
    new_tokens: int
    prefill_tokens_per_second: float
    lone: tuple[LonePoint, ...]
    load: tuple[LoadPoint, ...]
    noise: float  # relative spread of repeated sweeps; above ``tolerance`` the profile calls itself noisy
    tolerance: float
    seconds: float
    cpus: float = 0.0
    inter_threads: int = 1
    intra_threads: int = 1

    @property
    def noisy(self) -> bool:
        """Whether repeated sweeps agreed too badly for the figures to be trusted."""
        return self.noise > self.tolerance

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Profile:
        """The inverse of ``to_json``. Raises TypeError or KeyError where a field is missing or unknown."""
        rest = {name: part for name, part in value.items() if name not in ("lone", "load")}
        lone = tuple(LonePoint(**point) for point in value["lone"])
        return cls(lone=lone, load=tuple(LoadPoint(**point) for point in value["load"]), **rest)


def usable_cpus(limit: float | None, inter_threads: int, intra_threads: int) -> float:
    """CPUs that an engine of so many threads can use under a CPU limit (cores; None: no limit)."""
    threads = float(inter_threads * intra_threads)
    return threads if limit is None else min(limit, threads)


def concurrency_within(profile: Profile, slo_ms: float, share: float = SLO_SHARE) -> int:
    """Most requests at once whose P95 is within ``share`` of the SLO; 0 where even one is not.

    Between two measured concurrencies the P95 is interpolated; above the highest one nothing is claimed.
    """
    target = slo_ms * share
    points = sorted(profile.load, key=lambda point: point.concurrency)
    if not points or points[0].concurrency > 1 or points[0].p95_ms > target:
        return 0
    for left, right in itertools.pairwise(points):
        if right.p95_ms > target:
            part = (target - left.p95_ms) / (right.p95_ms - left.p95_ms)
            return left.concurrency + int(part * (right.concurrency - left.concurrency))
    return points[-1].concurrency


def sustained_work(profile: Profile, slo_ms: float, share: float = SLO_SHARE) -> float:
    """How many lone requests' worth of work one replica does at once within the SLO; at least 1.

    Requests at once and work done at once differ: a single worker holds three requests within a long SLO, two of them
    waiting, and still does the work of one. It is the speed at the concurrency that holds the SLO, against that of one
    request. By Little's law a fleet with less demand than this times its replicas can serve all that arrives; demand in
    requests at once, which grows with waiting, is never less than the work that arrives.
    """
    held = concurrency_within(profile, slo_ms, share)
    speeds = {point.concurrency: point.decode_tokens_per_second for point in profile.load if point.concurrency <= held}
    alone = speeds.get(1, 0.0)
    return max(1.0, max(speeds.values()) / alone) if alone > 0 else 1.0


def lone_latency(profile: Profile, input_tokens: int, new_tokens: int) -> float | None:
    """Latency of a lone request of that size (ms): that of the shortest measured one that is no smaller, else None."""
    fitting = [
        point.latency_ms
        for point in profile.lone
        if point.input_tokens >= input_tokens and point.new_tokens >= new_tokens
    ]
    return min(fitting, default=None)
