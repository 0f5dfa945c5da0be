"""What the completion model and the pod agent agree on: metrics, ids of warm-up requests, how a replay fails."""

from __future__ import annotations

METRIC_PREFIX = "hotstart_completion_"
SECONDS = f"{METRIC_PREFIX}seconds"
REQUESTS = f"{METRIC_PREFIX}requests_total"
RUNNING = f"{METRIC_PREFIX}running"
WAITING = f"{METRIC_PREFIX}waiting"
ENGINE_QUEUE = f"{METRIC_PREFIX}engine_queue_seconds"
REUSED_BLOCKS = f"{METRIC_PREFIX}reused_blocks_total"

ADDRESS_VARIABLE = "HOTSTART_TRITON"  # host:port where Triton listens for HTTP, if it is not the pods' port

WARM_UP_ID = "hotstart-warm-up"  # requests whose id begins so are not measured

REPLAY_FAILED = "The loaded engine fails its verification"  # a load that fails in these words must not be repeated
