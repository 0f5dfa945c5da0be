"""The operator's own metrics, for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping

from hotstart.engines.collection import Fate
from prometheus_client import Counter, Gauge, Histogram

EXCHANGES = Counter("hotstart_exchange_messages", "Messages of the exchange by agent and result.", ["agent", "result"])
EXCHANGE_TURN = Histogram(
    "hotstart_exchange_turn_seconds",
    "Time of one round of the exchange with all agents (seconds).",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
)
RECONCILES = Counter("hotstart_reconciles", "Reconciles by kind and result.", ["kind", "result"])
RECONCILE_SECONDS = Histogram("hotstart_reconcile_seconds", "Time of one reconcile (seconds).", ["kind"])
QUEUE_DEPTH = Gauge("hotstart_queue_depth", "Keys that wait to be reconciled.")
LEADING = Gauge("hotstart_leading", "1 in the replica that leads.")
REPLICAS = Gauge("hotstart_model_replicas", "Replicas of a model by state.", ["namespace", "model", "state"])
STORE_BYTES = Gauge("hotstart_store_bytes", "Bytes of engines in the store by fate, at the last sweep.", ["fate"])


def note_store_bytes(sizes: Mapping[Fate, int]) -> None:
    """What a sweep of the engine store saw."""
    for fate, size in sizes.items():
        STORE_BYTES.labels(fate.value).set(size)
