"""Where the time went when a pod started: from the decision to the first readiness, by phase. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from hotstart.operator.api.status import ColdStart
from hotstart.operator.core.facts import PodFacts

#: Phases of the agent's report in their order; they follow the pod's creation.
AGENT_PHASES = ("start", "fetch", "verify", "load", "warmup")


def measure_cold_start(pods: Iterable[PodFacts], old: ColdStart | None) -> ColdStart | None:
    """The start of the pod that became ready last; ``old`` where nothing newer did.

    A pod that an earlier measurement names is not measured again: its readiness may have gone and come back since.
    """
    ready = [pod for pod in pods if pod.ready_at is not None and not pod.deleting and pod.restarts == 0]
    newest = max(ready, key=lambda pod: (pod.decided, pod.name), default=None)
    if newest is None or newest.ready_at is None or newest.report is None:
        return old
    if old is not None and old.measured_at is not None and (is_measured(newest, old) or is_older(newest, old)):
        return old
    return ColdStart(
        pod=newest.name,
        measured_at=datetime.fromtimestamp(newest.ready_at, UTC),
        total_milliseconds=max(0, round((newest.ready_at - newest.decided) * 1000)),
        phases={name: max(0, round(seconds * 1000)) for name, seconds in phases_of(newest).items()},
    )


def is_measured(pod: PodFacts, old: ColdStart) -> bool:
    """Whether the measurement that stands is this pod's, and not that of an earlier one of the same name."""
    assert old.measured_at is not None
    return old.pod == pod.name and pod.decided <= old.measured_at.timestamp()


def is_older(pod: PodFacts, old: ColdStart) -> bool:
    """Whether the pod was ready before the measurement that stands."""
    assert old.measured_at is not None and pod.ready_at is not None
    return pod.ready_at < old.measured_at.timestamp()


def phases_of(pod: PodFacts) -> dict[str, float]:
    """Seconds by phase: creation to node, the agent's own phases, and what is left until the kubelet saw it ready."""
    phases: dict[str, float] = {}
    if pod.scheduled is not None:
        phases["schedule"] = pod.scheduled - pod.decided
    told = {} if pod.report is None else dict(pod.report.phases)
    for name in (*AGENT_PHASES, *sorted(set(told) - set(AGENT_PHASES))):
        if name in told:
            phases[name] = told[name]
    if pod.ready_at is not None:
        phases["other"] = pod.ready_at - pod.decided - sum(phases.values())
    return phases
