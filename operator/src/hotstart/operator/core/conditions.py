"""Conditions from verdicts: what is so and why; a time of transition that moves only when the status does. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from hotstart.operator.api import Condition, ConditionStatus, ConditionType, Reason
from hotstart.operator.api.conditions import READY_CONJUNCTION
from hotstart.operator.core.jobs import Failure

MESSAGE_LIMIT = 700  # characters; the whole status has 4 KiB


@dataclass(frozen=True)
class Verdict:
    """One condition before it has its time. ``holds`` None means Unknown."""

    type: ConditionType
    holds: bool | None
    reason: str
    message: str = ""


def failed_verdict(kind: ConditionType, failure: Failure) -> Verdict:
    """The verdict that a failure makes False."""
    return Verdict(kind, False, failure.reason, failure.message)


def ready_verdict(verdicts: Iterable[Verdict]) -> Verdict:
    """Ready: the conjunction; where it does not hold, in the words of the first part that does not."""
    parts = {verdict.type: verdict for verdict in verdicts}
    for kind in READY_CONJUNCTION:
        part = parts.get(kind)
        if part is None:
            return Verdict(ConditionType.READY, False, Reason.PENDING, f"{kind} is not known yet.")
        if part.holds is not True:
            return Verdict(ConditionType.READY, False, part.reason, part.message)
    return Verdict(ConditionType.READY, True, Reason.READY, "The model serves.")


STATUSES = {True: ConditionStatus.TRUE, False: ConditionStatus.FALSE, None: ConditionStatus.UNKNOWN}


def make_conditions(
    verdicts: Iterable[Verdict], old: Iterable[Condition], *, generation: int, now: float
) -> tuple[Condition, ...]:
    """The conditions in the order of the verdicts; an unchanged status keeps its time of transition."""
    before = {condition.type: condition for condition in old}
    moment = datetime.fromtimestamp(int(now), UTC)
    made = []
    for verdict in verdicts:
        status = STATUSES[verdict.holds]
        last = before.get(verdict.type)
        since = last.last_transition_time if last is not None and last.status == status else moment
        message = verdict.message
        if len(message) > MESSAGE_LIMIT:
            message = message[: MESSAGE_LIMIT - 3] + "..."
        made.append(
            Condition(
                type=verdict.type,
                status=status,
                observed_generation=generation,
                last_transition_time=since,
                reason=word(verdict.reason),
                message=message,
            )
        )
    return tuple(made)


def word(reason: str) -> str:
    """A reason as the API takes it: letters and digits only, starting with a letter."""
    text = "".join(char for char in str(reason) if char.isascii() and char.isalnum())[:64]
    return text if text and text[0].isalpha() else str(Reason.INTERNAL_ERROR)


def find_condition(conditions: Iterable[Condition], kind: ConditionType) -> Condition | None:
    """The condition of that type."""
    return next((condition for condition in conditions if condition.type == kind), None)
