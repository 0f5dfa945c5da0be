"""Whether a pod serves, or never will: its agent's word, and the kubelet's where the agent is silent. Pure."""

from __future__ import annotations

from hotstart.exchange.messages import PodState
from hotstart.exchange.names import ROLE_DRAINING
from hotstart.operator.core.facts import PodFacts

AGENT_RETRY_SECONDS = 60.0  # a retryable failure that the agent reports may pass for so long before its pod is replaced


def is_serving(pod: PodFacts, now: float) -> bool:
    """Whether the pod takes requests: by its agent's fresh word, else by the kubelet's."""
    if pod.deleting or pod.role == ROLE_DRAINING or not pod.ip or pod.phase != "Running":
        return False
    if pod.is_fresh(now) and pod.report is not None:
        return pod.report.state is PodState.READY
    return pod.ready


def has_failed(pod: PodFacts, now: float) -> bool:
    """Whether the pod will not serve: ended, or its agent gave up on it."""
    if pod.phase in ("Failed", "Succeeded"):
        return True
    report = pod.report
    if report is None or report.state is not PodState.FAILED or report.failure is None:
        return False
    if not report.failure.retryable:
        return True
    given_up = gives_up_at(pod)
    return given_up is not None and now >= given_up


def gives_up_at(pod: PodFacts) -> float | None:
    """When a retryable failure that its agent reports counts; None where there is none, or the pod has served."""
    if pod.failed_since is None or pod.ready_at is not None:
        return None
    return pod.failed_since + AGENT_RETRY_SECONDS
