"""What is said as an event: a sentence with a reason of the one enum. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hotstart.operator.api import Condition, ConditionStatus, ConditionType, Reason

#: Conditions whose change is worth an event; the others speak by themselves in status.
TOLD = (ConditionType.READY, ConditionType.ENGINE_READY, ConditionType.WORKLOAD_READY, ConditionType.DEGRADED)

#: Reasons for a condition not to hold that are steps on the way and no trouble.
ON_THE_WAY = frozenset(
    {
        Reason.PENDING,
        Reason.CHECKPOINT_INSPECTING,
        Reason.ENGINE_BUILDING,
        Reason.BUILD_QUEUED,
        Reason.REPLICAS_STARTING,
        Reason.ROLLING_OUT,
        Reason.NO_ENDPOINTS,
        Reason.ROUTER_BEHIND,
        Reason.HEALTHY,
        Reason.UP_TO_DATE,
    }
)


@dataclass(frozen=True)
class EventNote:
    """One event to send. ``warning`` is its type: Warning or Normal."""

    warning: bool
    reason: str
    message: str


def note_changes(old: Iterable[Condition], new: Iterable[Condition]) -> tuple[EventNote, ...]:
    """Events for conditions whose status or reason changed; each sentence once, though several conditions say it."""
    before = {condition.type: condition for condition in old}
    notes: dict[tuple[str, str], EventNote] = {}
    for condition in new:
        last = before.get(condition.type)
        if condition.type not in TOLD or not condition.message:
            continue
        if last is not None and (last.status, last.reason) == (condition.status, condition.reason):
            continue
        bad = condition.status is (
            ConditionStatus.TRUE if condition.type == ConditionType.DEGRADED else ConditionStatus.FALSE
        )
        if condition.reason in ON_THE_WAY:
            continue  # what was done about it is an event already
        note = EventNote(bad, condition.reason, condition.message)
        notes.setdefault((note.reason, note.message), note)
    return tuple(notes.values())
