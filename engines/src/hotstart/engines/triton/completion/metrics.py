"""The completion model's own metrics, through Triton's Python backend; they appear on Triton's metrics port.

Triton's counters give means only, and its durations end when ``execute`` returns. A histogram can be added up over
pods, and it has an edge at the SLO, so that the share within it is exact.
"""

from __future__ import annotations

import threading
from typing import Any

from hotstart.engines.triton.completion.generation import FinishReason
from hotstart.engines.triton.completion.job import Ended
from hotstart.engines.triton.completion.names import REQUESTS, RUNNING, SECONDS, WAITING
from hotstart.engines.triton.completion.scheduler import Load

EDGES_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0)


def make_edges(slo_ms: int) -> tuple[float, ...]:
    """The histogram's upper edges in seconds, ascending, with one at the SLO. Pure."""
    return tuple(sorted({*EDGES_SECONDS, slo_ms / 1000}))


class Metrics:
    """``pb_utils`` is Triton's module, an argument so that this can be tested without Triton."""

    def __init__(self, pb_utils: Any, *, model: str, slo_ms: int) -> None:
        family = pb_utils.MetricFamily
        labels = {"model": model}
        seconds = family(
            name=SECONDS,
            description="From a request's receipt to its last byte, completed ones.",
            kind=family.HISTOGRAM,
        )
        requests = family(name=REQUESTS, description="Requests by how they ended.", kind=family.COUNTER)
        running = family(name=RUNNING, description="Requests that the engine works on.", kind=family.GAUGE)
        waiting = family(name=WAITING, description="Requests that wait for a worker.", kind=family.GAUGE)
        self._families = (seconds, requests, running, waiting)  # a metric ends with its family
        self._seconds = seconds.Metric(labels=labels, buckets=list(make_edges(slo_ms)))
        outcomes = {None: "failed", FinishReason.CANCELLED: "cancelled"}
        reasons: tuple[FinishReason | None, ...] = (None, *FinishReason)
        self._requests = {
            name: requests.Metric(labels={**labels, "outcome": name})
            for name in sorted({outcomes.get(reason, "completed") for reason in reasons})
        }
        self._outcomes = {reason: self._requests[outcomes.get(reason, "completed")] for reason in reasons}
        self._running = running.Metric(labels=labels)
        self._waiting = waiting.Metric(labels=labels)
        self._lock = threading.Lock()
        self._shown = Load(0, 0)

    def ended(self, ended: Ended) -> None:
        """Counts one request."""
        self._outcomes[ended.reason].increment(1)
        if ended.reason in (FinishReason.STOP, FinishReason.LENGTH):
            self._seconds.observe(ended.seconds)

    def show(self, load: Load) -> None:
        """Sets the gauges, where they differ."""
        with self._lock:
            if load.running != self._shown.running:
                self._running.set(load.running)
            if load.waiting != self._shown.waiting:
                self._waiting.set(load.waiting)
            self._shown = load
