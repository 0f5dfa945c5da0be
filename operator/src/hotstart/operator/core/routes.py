"""What routers have to know of a model: endpoints with caps, what is coming, or why there is none. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable

from hotstart.exchange.messages import Endpoint, ModelRoute
from hotstart.exchange.names import PORT_TRITON_GRPC, ROLE_DRAINING
from hotstart.operator.api import CompletionModel, ConditionStatus, ConditionType
from hotstart.operator.api.model_spec import Management
from hotstart.operator.core.capacity import slots_of
from hotstart.operator.core.conditions import find_condition
from hotstart.operator.core.facts import PodFacts
from hotstart.operator.core.pod_states import has_failed, is_serving
from hotstart.operator.core.recipe import POD_QUEUE
from hotstart.operator.core.scale import is_external


def make_route(
    model: CompletionModel, pods: Iterable[PodFacts], *, cap: int, routers: int, created: int, reason: str, now: float
) -> ModelRoute:
    """The model's route. ``cap``: most requests that a pod is sent at once (``capacity.Capacity``) by all ``routers``.

    ``reason`` is why it does not serve; ``created`` is in seconds since the epoch.
    """
    spec = model.spec
    share = share_of(min(cap, slots_of(spec) + POD_QUEUE), routers)
    pods = [pod for pod in pods if not pod.deleting and pod.role != ROLE_DRAINING]
    endpoints = tuple(
        Endpoint(
            pod=pod.name,
            address=f"{bracket(pod.ip)}:{PORT_TRITON_GRPC}",
            cap=share,
        )
        for pod in sorted(pods, key=lambda pod: pod.name)
        if is_serving(pod, now)
    )
    coming = any(not is_serving(pod, now) and not has_failed(pod, now) for pod in pods)
    return ModelRoute(
        model=f"{model.metadata.namespace}/{model.metadata.name}",
        endpoints=endpoints,
        coming=coming or (spec.replicas > 0 and not endpoints and reason == "") or wakes_up(model, now),
        unavailable_reason="" if endpoints else reason,
        slo_ms=spec.slo.latency.milliseconds,
        max_new_tokens=spec.serving.max_new_tokens,
        queue_limit=spec.serving.queue.max_requests,
        queue_deadline=spec.serving.queue.deadline.seconds,
        hold=spec.serving.hold_requests.seconds,
        created=created,
        prompt_format=spec.serving.prompt.format.value,
    )


def wakes_up(model: CompletionModel, now: float) -> bool:
    """Whether a model without replicas gets one as soon as a request waits for it: then requests are to wait.

    What waits is demand, and what is refused at once is not: a model at 0 would stay there for ever.
    """
    spec, override = model.spec, model.spec.scaling.override
    engine = find_condition(model.status.conditions, ConditionType.ENGINE_READY)
    held = override is not None and now < override.until.timestamp()
    scales = not is_external(spec) and spec.management is not Management.PAUSED and not held
    return spec.replicas == 0 and scales and engine is not None and engine.status is ConditionStatus.TRUE


def share_of(cap: int, routers: int) -> int:
    """What one router may send a pod at once: routers do not know of each other's requests."""
    return max(1, math.ceil(cap / max(1, routers)))


def bracket(ip: str) -> str:
    """An IPv6 address in brackets, any other as it is."""
    return f"[{ip}]" if ":" in ip else ip
