"""The completion model's own metrics, through Triton's Python backend; they appear on Triton's metrics port.

Triton's counters give means only, and its durations end when ``execute`` returns. A histogram can be added up over
pods, and it has an edge at the SLO, so that the share within it is exact. Where the engine measures itself, as
TensorRT-LLM does, its figures stand beside ours.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

from hotstart.engines.triton.completion.engine import Measured
from hotstart.engines.triton.completion.generation import FinishReason
from hotstart.engines.triton.completion.job import Ended
from hotstart.engines.triton.completion.names import ENGINE_QUEUE, REQUESTS, REUSED_BLOCKS, RUNNING, SECONDS, WAITING
from hotstart.engines.triton.completion.scheduler import Load

EDGES_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0)


COMPLETED, CANCELLED, FAILED = OUTCOMES = ("completed", "cancelled", "failed")
PERIOD_SECONDS = 0.1


def decide_outcome(reason: FinishReason | None) -> str:
    """The label of a request that ended so; None means that it failed. Pure."""
    if reason is None:
        return FAILED
    return CANCELLED if reason is FinishReason.CANCELLED else COMPLETED


def make_edges(slo_ms: int) -> tuple[float, ...]:
    """The histogram's upper edges in seconds, ascending, with one at the SLO. Pure."""
    return tuple(sorted({*EDGES_SECONDS, slo_ms / 1000}))


class Metrics:
    """Counts on any thread, tells Triton on one thread of its own, every ``PERIOD_SECONDS``.

    Triton 2.51 crashes when metrics are changed on several threads at once; besides, each change is a message to the
    server that no request should wait for. ``pb_utils`` is Triton's module, an argument so that tests need no Triton.
    """

    def __init__(
        self, pb_utils: Any, *, model: str, slo_ms: int, load: Callable[[], Load], engine_measures: bool = False
    ) -> None:
        self._load = load
        self._ended: queue.SimpleQueue[Ended] = queue.SimpleQueue()
        self._closing = threading.Event()
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
        self._engine = _EngineMetrics(family, labels, make_edges(slo_ms)) if engine_measures else None
        self._families = (seconds, requests, running, waiting)  # a metric ends with its family
        self._seconds = seconds.Metric(labels=labels, buckets=list(make_edges(slo_ms)))
        self._requests = {name: requests.Metric(labels={**labels, "outcome": name}) for name in OUTCOMES}
        self._running = running.Metric(labels=labels)
        self._waiting = waiting.Metric(labels=labels)
        self._shown = Load(0, 0)
        self._thread = threading.Thread(target=self._work, name="metrics", daemon=True)
        self._thread.start()

    def ended(self, ended: Ended) -> None:
        """Counts one request."""
        self._ended.put(ended)

    def close(self) -> None:
        """Tells what is left, and ends the thread."""
        self._closing.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._closing.wait(PERIOD_SECONDS):
            self._tell()
        self._tell()

    def _tell(self) -> None:
        while not self._ended.empty():
            ended = self._ended.get()
            outcome = decide_outcome(ended.reason)
            self._requests[outcome].increment(1)
            if outcome == COMPLETED:
                self._seconds.observe(ended.seconds)
            if self._engine is not None:
                self._engine.tell(ended.measured)
        load = self._load()
        if load.running != self._shown.running:
            self._running.set(load.running)
        if load.waiting != self._shown.waiting:
            self._waiting.set(load.waiting)
        self._shown = load


class _EngineMetrics:
    """What an engine says of its own requests. Called on the thread of ``Metrics`` only."""

    def __init__(self, family: Any, labels: dict[str, str], edges: Sequence[float]) -> None:
        queue = family(
            name=ENGINE_QUEUE,
            description="From the engine's receipt of a request to the first time that it worked on it.",
            kind=family.HISTOGRAM,
        )
        reused = family(
            name=REUSED_BLOCKS,
            description="Blocks of the KV cache that earlier requests with the same beginning had left.",
            kind=family.COUNTER,
        )
        self._families = (queue, reused)  # a metric ends with its family
        self._queue = queue.Metric(labels=labels, buckets=list(edges))
        self._reused = reused.Metric(labels=labels)

    def tell(self, measured: Measured) -> None:
        if measured.queue_ms is not None:
            self._queue.observe(measured.queue_ms / 1000)
        if measured.reused_blocks:
            self._reused.increment(measured.reused_blocks)
