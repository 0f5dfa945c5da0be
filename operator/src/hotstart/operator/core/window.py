"""The last ten minutes of a model's traffic, second by second, summed over routers. Pure; in memory only.

Routers report each second once, by cursor. A second that no router mentions had no traffic, if the routers were heard
since: silence of the routers themselves is no data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from hotstart.exchange.messages import LATENCY_EDGES_MS, ModelSecond

KEPT_SECONDS = 600
STALE_SECONDS = 6.0


@dataclass(frozen=True)
class Second:
    """One second of a model over all routers. Sums are integrals over the second (requests x seconds)."""

    arrivals: int = 0
    completed: int = 0
    failed: int = 0
    rejected: int = 0
    cancelled: int = 0
    cancelled_late: int = 0
    in_flight: float = 0.0
    queued: float = 0.0
    within_slo: int = 0
    buckets: tuple[int, ...] = ()

    def plus(self, other: ModelSecond) -> Second:
        """The sum with what another router saw."""
        return Second(
            self.arrivals + other.arrivals,
            self.completed + other.completed,
            self.failed + other.failed,
            self.rejected + other.rejected,
            self.cancelled + other.cancelled,
            self.cancelled_late + other.cancelled_late,
            self.in_flight + other.in_flight_sum,
            self.queued + other.queued_sum,
            self.within_slo + other.within_slo,
            add_buckets(self.buckets, other.latency_buckets),
        )


def add_buckets(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    """Counts by bucket; () is all zero."""
    if not left or not right:
        return left or right
    return tuple(a + b for a, b in zip(left, right, strict=False))


@dataclass(frozen=True)
class Window:
    """Seconds by number; ``heard`` is when a router last reported anything, in seconds since the epoch."""

    seconds: Mapping[int, Second] = field(default_factory=dict)
    heard: float | None = None

    def is_fresh(self, now: float) -> bool:
        """Whether the routers speak of now."""
        return self.heard is not None and now - self.heard <= STALE_SECONDS

    def last(self, count: int, now: float) -> tuple[Second, ...]:
        """The last ``count`` whole seconds before ``now``, oldest first."""
        end = int(now)
        return tuple(self.seconds.get(second, EMPTY) for second in range(end - count, end))


EMPTY = Second()


def add_seconds(window: Window, found: Iterable[ModelSecond], now: float) -> Window:
    """The window with the report of one router that was heard at ``now``."""
    seconds = {number: second for number, second in window.seconds.items() if number > now - KEPT_SECONDS}
    for entry in found:
        if entry.second > now - KEPT_SECONDS:
            seconds[entry.second] = seconds.get(entry.second, EMPTY).plus(entry)
    return replace(window, seconds=seconds, heard=now)


@dataclass(frozen=True)
class Latency:
    """Latency over a stretch of time: ``value`` in milliseconds at the percentile, None without samples."""

    value: float | None
    samples: int
    violations: int  # completed after the SLO, or given up by the client after it

    def misses(self, percentile: int) -> bool:
        """Whether more requests took longer than the SLO than ``percentile`` allows: by count, not by bucket."""
        return self.violations > self.samples * (100 - percentile) / 100


def measure_latency(seconds: Iterable[Second], percentile: int) -> Latency:
    """The percentile by linear interpolation inside its bucket; a late cancel counts as slower than everything."""
    buckets: tuple[int, ...] = ()
    completed = late = within = 0
    for second in seconds:
        buckets = add_buckets(buckets, second.buckets)
        completed += second.completed
        late += second.cancelled_late
        within += second.within_slo
    total = sum(buckets) + late
    if not total:
        return Latency(None, 0, 0)
    return Latency(interpolate(buckets, total * percentile / 100), total, max(0, completed - within) + late)


def interpolate(buckets: tuple[int, ...], rank: float) -> float:
    """The value in ms of that rank; the last edge where it lies beyond it."""
    below = 0
    for index, count in enumerate(buckets):
        if count and below + count >= rank:
            low = LATENCY_EDGES_MS[index - 1] if 0 < index <= len(LATENCY_EDGES_MS) else 0.0
            high = LATENCY_EDGES_MS[index] if index < len(LATENCY_EDGES_MS) else LATENCY_EDGES_MS[-1]
            return low + (high - low) * (rank - below) / count
        below += count
    return LATENCY_EDGES_MS[-1]
