"""What becomes of a request that comes in or waits: a frozen decision with a reason. Pure.

A lane (one model) gathers a ``LaneView`` and asks; each policy is a small function named after the fact that it finds,
and the first that finds its fact decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

MAX_RETRY_AFTER_SECONDS = 60


class Reason(StrEnum):
    SLOT_FREE = "SlotFree"  # a pod takes it now
    ALL_BUSY = "AllBusy"  # waits in the queue for a slot
    REPLICA_COMING = "ReplicaComing"  # waits for the first replica
    REPLICAS_SILENT = "ReplicasSilent"  # waits for a replica to answer again
    QUEUE_FULL = "QueueFull"  # 429
    QUEUE_DEADLINE = "QueueDeadline"  # 429: it waited as long as the model lets it
    NO_REPLICA = "NoReplica"  # 503
    HOLD_EXPIRED = "HoldExpired"  # 503: no replica came in time
    NONE_ANSWERS = "NoneAnswers"  # 503: no replica answered in time


class Phase(StrEnum):
    """What a model has to serve with; the limit of a wait is counted from the last change between these."""

    PRESENT = "Present"  # there are endpoints
    COMING = "Coming"  # none yet, one is on its way
    ABSENT = "Absent"  # none, and none is on its way


@dataclass(frozen=True, slots=True)
class LaneView:
    """One model as an admission sees it."""

    phase: Phase
    pod: str | None  # the pod that would take the request now, and none of those that wait
    answering: bool  # at least one pod answers
    queued: int  # requests waiting
    queue_limit: int
    queue_deadline: float  # seconds
    hold: float  # seconds


@dataclass(frozen=True, slots=True)
class Decision:
    """``pod`` is set only with SLOT_FREE."""

    reason: Reason
    pod: str | None = None

    @property
    def waits(self) -> bool:
        return self.reason in _WAITS


_WAITS = frozenset({Reason.ALL_BUSY, Reason.REPLICA_COMING, Reason.REPLICAS_SILENT})
_EXPIRED = {
    Reason.ALL_BUSY: Reason.QUEUE_DEADLINE,
    Reason.REPLICA_COMING: Reason.HOLD_EXPIRED,
    Reason.REPLICAS_SILENT: Reason.NONE_ANSWERS,
}


def phase_of(*, endpoints: int, coming: bool) -> Phase:
    if endpoints:
        return Phase.PRESENT
    return Phase.COMING if coming else Phase.ABSENT


def slot_free(view: LaneView) -> Decision | None:
    return Decision(Reason.SLOT_FREE, view.pod) if view.pod is not None else None


def replica_absent(view: LaneView) -> Decision | None:
    return Decision(Reason.NO_REPLICA) if view.phase is Phase.ABSENT else None


def queue_full(view: LaneView) -> Decision | None:
    return Decision(Reason.QUEUE_FULL) if view.queued >= view.queue_limit else None


def replica_coming(view: LaneView) -> Decision | None:
    return Decision(Reason.REPLICA_COMING) if view.phase is Phase.COMING else None


def replicas_silent(view: LaneView) -> Decision | None:
    return None if view.answering else Decision(Reason.REPLICAS_SILENT)


def all_busy(view: LaneView) -> Decision | None:
    return Decision(Reason.ALL_BUSY)


Policy = Callable[[LaneView], Decision | None]
# A newcomer must pass the queue's limit; one that waits has passed it.
NEWCOMER: tuple[Policy, ...] = (slot_free, replica_absent, queue_full, replica_coming, replicas_silent, all_busy)
WAITING: tuple[Policy, ...] = (replica_absent, replica_coming, replicas_silent, all_busy)


def decide_admission(view: LaneView, policies: tuple[Policy, ...] = NEWCOMER) -> Decision:
    """What becomes of a request that comes in now."""
    return next(decision for policy in policies if (decision := policy(view)) is not None)


def wait_ends(view: LaneView, since: float, phase_since: float) -> float:
    """When a request that waits since ``since`` is refused if nothing changes, on the lane's clock.

    Whatever replicas come and go meanwhile, it is held once and queues once at most. Who began to wait earlier is never
    refused later.
    """
    if view.phase is Phase.ABSENT:
        return since
    limit = view.queue_deadline if view.phase is Phase.PRESENT else view.hold
    return min(max(since, phase_since) + limit, since + view.hold + view.queue_deadline)


def decide_waiting(view: LaneView, since: float, phase_since: float, now: float) -> Decision:
    """What becomes of a request in the queue for which no slot is free."""
    decision = decide_admission(view, WAITING)
    if decision.waits and now >= wait_ends(view, since, phase_since):
        return Decision(_EXPIRED[decision.reason])
    return decision


def retry_after_seconds(queued: int, drained_per_second: float, fallback: float) -> int:
    """Whole seconds until the queue has drained, at the rate at which it drains now; at least one.

    ``fallback`` (seconds) stands in while nothing has drained.
    """
    seconds = (queued + 1) / drained_per_second if drained_per_second > 0 else fallback
    return max(1, math.ceil(min(MAX_RETRY_AFTER_SECONDS, seconds)))
