"""Whether a pod serves, or never will: its agent's word, and the kubelet's where the agent is silent. Pure."""

from __future__ import annotations

from hotstart.exchange.messages import PodState
from hotstart.exchange.names import PORT_AGENT, ROLE_DRAINING
from hotstart.operator.api import Reason
from hotstart.operator.core.facts import PodFacts
from hotstart.operator.core.jobs import Failure

SILENT_AFTER_SECONDS = 15.0  # a pod that runs, and whose agent has not been heard
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


def silent_at(pod: PodFacts, heard_at: float | None) -> float | None:
    """From when on the pod's agent is unreachable, if nothing is heard until then; None where the pod does not run."""
    if pod.deleting or pod.phase != "Running" or pod.running_since is None:
        return None
    return max(pod.running_since, heard_at or 0.0) + SILENT_AFTER_SECONDS


def is_silent(pod: PodFacts, heard_at: float | None, now: float) -> bool:
    """Whether the pod runs, and the operator has not heard its agent for too long; ``heard_at`` None is never."""
    at = silent_at(pod, heard_at)
    return at is not None and now >= at


def describe_silence(what: str, pod: PodFacts) -> Failure:
    """Why an agent that runs may not be heard, and what to do about it."""
    message = (
        f"{what} in pod {pod.name} runs on node {pod.node} and does not answer the operator: let network policies pass "
        f"port {PORT_AGENT}, keep clocks within 30 s of one another, and see that the node is there."
    )
    return Failure(Reason.AGENT_UNREACHABLE, message, True)
