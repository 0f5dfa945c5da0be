"""How often a revision's pods crashed: three crashes without a ready pod stop the revision and not the model. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from hotstart.operator.api import CompletionModelStatus, ConditionStatus, ConditionType, Reason
from hotstart.operator.core.conditions import find_condition
from hotstart.operator.core.facts import PodFacts
from hotstart.operator.core.pod_states import has_failed, is_serving

CRASHES_THAT_STOP = 3
STOPPED = re.compile(r"stopped after (\d+) crashes, other revisions serve on: (.*)\. One pod is tried", re.DOTALL)


@dataclass(frozen=True)
class CrashRecord:
    """Crashes of one revision in this operator's memory.

    ``seen`` are those of each pod that stands, by UID, counted or not. ``count`` is since a pod of the revision last
    became ready; ``message`` is what the last one said.
    """

    seen: Mapping[str, int] = field(default_factory=dict)
    count: int = 0
    last_at: float = 0.0
    reason: str = ""
    message: str = ""


def record_crashes(old: CrashRecord, pods: tuple[PodFacts, ...], revision: str, now: float) -> CrashRecord:
    """The record with what the revision's pods show now; a pod that became ready since wipes the count.

    Restarts of a pod that serves are no crashes of the revision: it can serve. Nor are those of a pod that is seen
    for the first time: they were before this process, or are counted in what a stopped revision's status says. Nor is
    the end of a pod that Kubernetes took off its node.
    """
    own = [pod for pod in pods if pod.revision == revision and not pod.deleting]
    stand = {pod.uid for pod in pods}
    seen = {uid: crashes for uid, crashes in old.seen.items() if uid in stand}
    count, last_at, reason, message = old.count, old.last_at, old.reason, old.message
    for pod in own:
        crashes = pod.restarts + (1 if has_failed(pod, now) and not pod.disrupted else 0)
        known = seen.get(pod.uid, crashes if count >= CRASHES_THAT_STOP else pod.restarts)
        if crashes > known and not is_serving(pod, now):
            count, last_at = count + crashes - known, now
            reason, message = read_crash(pod)
        seen[pod.uid] = max(crashes, known)
    if any(is_serving(pod, now) and pod.ready_at is not None and pod.ready_at > last_at for pod in own):
        return CrashRecord(seen)
    return CrashRecord(seen, count, last_at, reason, message)


def read_crash(pod: PodFacts) -> tuple[str, str]:
    """Why the pod ended: in its agent's words, those of who took it off its node, or its container's last lines."""
    if pod.report is not None and pod.report.failure is not None:
        return pod.report.failure.reason, pod.report.failure.message
    if pod.disrupted:
        return Reason.REPLICAS_UNAVAILABLE, f"it was taken off node {pod.node}: {pod.disrupted}"
    if pod.exit is not None:
        tail = " | ".join(pod.exit.message.splitlines()[-3:])[-400:]
        said = f"container {pod.exit.container} ended with code {pod.exit.code} ({pod.exit.reason or 'Error'})"
        return Reason.PODS_CRASHING, f"{said}: {tail}" if tail else said
    return Reason.PODS_CRASHING, f"pod {pod.name} ended in phase {pod.phase}"


def recall_crashes(
    revision: str, status: CompletionModelStatus, pods: tuple[PodFacts, ...], crashes: Mapping[str, CrashRecord]
) -> CrashRecord:
    """What is remembered of the revision's crashes; that it is stopped is read from status by another process.

    The last crash is then no later than the last transition, or than the start of a pod that was tried since.
    """
    known, degraded = crashes.get(revision), find_condition(status.conditions, ConditionType.DEGRADED)
    if known is not None or degraded is None or status.revision != revision:
        return known or CrashRecord()
    if degraded.status is not ConditionStatus.TRUE or degraded.reason != Reason.REVISION_STOPPED:
        return CrashRecord()
    tried = [pod.decided for pod in pods if pod.revision == revision]
    last_at = max((degraded.last_transition_time.timestamp(), *tried))
    found = STOPPED.search(degraded.message)
    count, message = (CRASHES_THAT_STOP, "") if found is None else (int(found[1]), found[2])
    return CrashRecord(count=count, last_at=last_at, message=message)


def describe_stop(record: CrashRecord, revision: str) -> str:
    """The sentence of a stopped revision's Degraded, which `recall_crashes` reads again."""
    return (
        f"Revision {revision[:8]} is stopped after {record.count} crashes, other revisions serve on: "
        f"{record.message}. One pod is tried again every 5 min; change the spec to try at once."
    )
