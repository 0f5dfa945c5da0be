"""What the router saw, second by second, for the operator. Pure: ``now`` (seconds since the epoch) is an argument.

The operator reads full seconds by cursor. Requests in flight and queued are exact integrals over each second (level
times time), not samples. A second without traffic has no record: the report's cursor says that it is over.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter, deque
from dataclasses import dataclass
from enum import StrEnum

from hotstart.exchange.messages import LATENCY_EDGES_MS, ModelSecond

KEPT_SECONDS = 600
STEP_BACK_SECONDS = 1.0  # a clock that goes back by less stands meanwhile


class Outcome(StrEnum):
    """How a request ended; the names are ``ModelSecond``'s fields."""

    COMPLETED = "completed"
    FAILED = "failed"
    REJECTED = "rejected"
    CANCELLED = "cancelled"
    CANCELLED_LATE = "cancelled_late"


def decide_cancelled(latency: float, slo_ms: int) -> Outcome:
    """A client that left after the SLO saw a violation; one that left before tells nothing (censored)."""
    return Outcome.CANCELLED_LATE if latency * 1000.0 > slo_ms else Outcome.CANCELLED


@dataclass(frozen=True, slots=True)
class Second:
    """One second with traffic, compact: ``buckets`` holds only the counts above zero."""

    second: int
    counts: tuple[tuple[str, int], ...]
    in_flight_sum: float
    queued_sum: float
    buckets: tuple[tuple[int, int], ...]

    def to_message(self, model: str) -> ModelSecond:
        buckets: tuple[int, ...] = ()
        if self.buckets:
            dense = [0] * (len(LATENCY_EDGES_MS) + 1)
            for index, count in self.buckets:
                dense[index] = count
            buckets = tuple(dense)
        return ModelSecond(
            second=self.second,
            model=model,
            in_flight_sum=self.in_flight_sum,
            queued_sum=self.queued_sum,
            latency_buckets=buckets,
            **dict(self.counts),
        )


class ModelBook:
    """The seconds of one model. A ``now`` that is a little before the last one counts as the last one."""

    def __init__(self, model: str, now: float) -> None:
        self.model = model
        self.in_flight = 0
        self.queued = 0
        self._now = now
        self._second = math.floor(now)
        self._born = now
        self._full: deque[Second] = deque()
        self._begin()

    def _begin(self) -> None:
        self._counts: Counter[str] = Counter()
        self._buckets: Counter[int] = Counter()
        self._in_flight_sum = 0.0
        self._queued_sum = 0.0

    def advance(self, now: float) -> None:
        """Closes the seconds that are over; after a clock was put it goes on from where that stands."""
        if now < self._now - STEP_BACK_SECONDS:
            self._second, self._now = math.floor(now), now
            while self._full and self._full[-1].second >= self._second:
                self._full.pop()
        elif now - self._second > KEPT_SECONDS + 1:
            self._second = math.floor(now) - KEPT_SECONDS
            self._now = float(self._second)
        while now >= self._second + 1:
            self._integrate(float(self._second + 1))
            if self._counts or self._in_flight_sum or self._queued_sum:
                self._full.append(self._close())
            self._begin()
            self._second += 1
        self._integrate(now)
        oldest = self._second - KEPT_SECONDS
        while self._full and self._full[0].second < oldest:
            self._full.popleft()

    def _integrate(self, until: float) -> None:
        passed = until - self._now
        if passed > 0:
            self._in_flight_sum += self.in_flight * passed
            self._queued_sum += self.queued * passed
            self._now = until

    def _close(self) -> Second:
        counts, buckets = tuple(self._counts.items()), tuple(sorted(self._buckets.items()))
        return Second(self._second, counts, self._in_flight_sum, self._queued_sum, buckets)

    def arrive(self, now: float) -> None:
        self.advance(now)
        self._counts["arrivals"] += 1

    def set_levels(self, now: float, *, in_flight: int, queued: int) -> None:
        """From ``now`` on so many requests are at pods, and so many wait."""
        self.advance(now)
        self.in_flight = in_flight
        self.queued = queued

    def finish(self, now: float, outcome: Outcome, latency: float, slo_ms: int) -> None:
        """A request has ended after ``latency`` seconds."""
        self.advance(now)
        self._counts[outcome.value] += 1
        if outcome is Outcome.COMPLETED:
            milliseconds = latency * 1000.0
            self._buckets[bisect_left(LATENCY_EDGES_MS, milliseconds)] += 1
            if milliseconds <= slo_ms:
                self._counts["within_slo"] += 1

    def read(self, cursor: int, until: int) -> list[ModelSecond]:
        """Each second with traffic after ``cursor`` up to and with ``until``, oldest first; call ``advance`` before."""
        return [second.to_message(self.model) for second in self._full if cursor < second.second <= until]

    def drained_per_second(self, window: int = 10) -> float:
        """Requests that ended at pods in a second, over the last ``window`` seconds and the current one."""
        ended = (Outcome.COMPLETED.value, Outcome.FAILED.value, Outcome.CANCELLED.value, Outcome.CANCELLED_LATE.value)
        total = sum(self._counts[name] for name in ended)
        for second in reversed(self._full):
            if second.second < self._second - window:
                break
            total += sum(count for name, count in second.counts if name in ended)
        return total / max(1.0, min(window + self._now - self._second, self._now - self._born))


def last_full_second(now: float) -> int:
    return math.floor(now) - 1


def page_end(cursor: int, now: float, models: int, most: int) -> int:
    """The second up to which a report reads, so that it holds at most about ``most`` records."""
    last = last_full_second(now)
    start = max(cursor, last - KEPT_SECONDS)
    return min(last, start + max(1, most // max(1, models)))
