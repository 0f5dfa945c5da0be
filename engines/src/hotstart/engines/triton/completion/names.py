"""Names that the completion model and the pod agent agree on: its metrics, and the ids of warm-up requests."""

from __future__ import annotations

METRIC_PREFIX = "hotstart_completion_"
SECONDS = f"{METRIC_PREFIX}seconds"
REQUESTS = f"{METRIC_PREFIX}requests_total"
RUNNING = f"{METRIC_PREFIX}running"
WAITING = f"{METRIC_PREFIX}waiting"

WARM_UP_ID = "hotstart-warm-up"  # requests whose id begins so are not measured
