"""How often a revision's pods crashed: three crashes without a ready pod stop the revision and not the model. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hotstart.operator.api import Reason
from hotstart.operator.core.facts import PodFacts
from hotstart.operator.core.pod_states import has_failed, is_serving

CRASHES_THAT_STOP = 3


@dataclass(frozen=True)
class CrashRecord:
    """Crashes of one revision in this operator's memory. ``seen`` are those of each pod by UID, counted or not.

    ``count`` is since a pod of the revision last became ready; ``message`` is what the last one said.
    """

    seen: Mapping[str, int] = field(default_factory=dict)
    count: int = 0
    last_at: float = 0.0
    reason: str = ""
    message: str = ""


def record_crashes(old: CrashRecord, pods: tuple[PodFacts, ...], revision: str, now: float) -> CrashRecord:
    """The record with what the revision's pods show now; a pod that became ready since wipes the count.

    Restarts of a pod that serves are no crashes of the revision: it can serve.
    """
    own = [pod for pod in pods if pod.revision == revision and not pod.deleting]
    seen, count, last_at, reason, message = dict(old.seen), old.count, old.last_at, old.reason, old.message
    for pod in own:
        crashes = pod.restarts + (1 if has_failed(pod, now) else 0)
        if crashes > seen.get(pod.uid, 0) and not is_serving(pod, now):
            count, last_at = count + crashes - seen.get(pod.uid, 0), now
            reason, message = read_crash(pod)
        seen[pod.uid] = max(crashes, seen.get(pod.uid, 0))
    if any(is_serving(pod, now) and pod.ready_at is not None and pod.ready_at > last_at for pod in own):
        return CrashRecord(seen)
    return CrashRecord(seen, count, last_at, reason, message)


def read_crash(pod: PodFacts) -> tuple[str, str]:
    """Why the pod crashed, in its agent's words or in the last lines of its container."""
    if pod.report is not None and pod.report.failure is not None:
        return pod.report.failure.reason, pod.report.failure.message
    if pod.exit is not None:
        tail = " | ".join(pod.exit.message.splitlines()[-3:])[-400:]
        said = f"container {pod.exit.container} ended with code {pod.exit.code} ({pod.exit.reason or 'Error'})"
        return Reason.PODS_CRASHING, f"{said}: {tail}" if tail else said
    return Reason.PODS_CRASHING, f"pod {pod.name} ended in phase {pod.phase}"
