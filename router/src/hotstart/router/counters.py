"""Totals of one model since the router began, for Prometheus. The histogram has an edge at the model's SLO."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

from hotstart.router.statistics import Outcome

# Seconds; about half a power of two apart, from a trivial model's answer to the longest generation.
BASE_EDGES = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.35, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 30.0)


def histogram_edges(slo_ms: int) -> tuple[float, ...]:
    """Upper edges in seconds, the SLO among them."""
    return tuple(sorted({*BASE_EDGES, slo_ms / 1000.0}))


class Histogram:
    """Counts by upper edges in seconds, the last count is +Inf."""

    def __init__(self, edges: tuple[float, ...]) -> None:
        self.edges = edges
        self.counts = [0] * (len(edges) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.edges, seconds)] += 1
        self.sum += seconds

    def cumulative(self) -> list[tuple[str, float]]:
        """Prometheus's buckets: upper edge as text, count of all at or under it."""
        total, buckets = 0, []
        for edge, count in zip((*self.edges, float("inf")), self.counts, strict=True):
            total += count
            buckets.append(("+Inf" if edge == float("inf") else repr(edge), float(total)))
        return buckets


class ModelCounters:
    """A change of the SLO begins new histograms, which Prometheus sees as a restart."""

    def __init__(self, slo_ms: int) -> None:
        self.outcomes: Counter[Outcome] = Counter()
        self.retries = 0
        self.set_slo(slo_ms)

    def set_slo(self, slo_ms: int) -> None:
        self.slo_ms = slo_ms
        self.latency = Histogram(histogram_edges(slo_ms))  # completed requests, receipt to last byte
        self.first_piece = Histogram(histogram_edges(slo_ms))  # completed requests, receipt to first text
        self.waited = Histogram(histogram_edges(slo_ms))  # time in the queue of requests that got a slot
