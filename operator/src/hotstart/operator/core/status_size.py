"""The status of a CompletionModel in 4 KiB: what is cut first, and what last. Pure.

Facts that later decisions are taken on (digests, the network's sizes, the engine) are never cut.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial

from hotstart.operator.api import CompletionModelStatus, Condition, ConditionStatus, ConditionType
from hotstart.operator.api.status import Decision

STATUS_LIMIT = 4096  # bytes of JSON
SHORT_MESSAGE = 200  # characters
SHORTEST_MESSAGE = 80
SHORT_PLAN = 300
SHORT_TEXT = 100  # of what the spec says too

Status = CompletionModelStatus
Cut = Callable[[Status], Status]


def size_of(status: Status) -> int:
    """Bytes of the status as compact JSON."""
    return len(json.dumps(status.to_api(), separators=(",", ":")).encode())


def bound_status(status: Status) -> Status:
    """The status in at most 4 KiB, by as few cuts as it takes."""
    for cut in list_cuts(len(status.decisions)):
        if size_of(status) <= STATUS_LIMIT:
            break
        status = cut(status)
    return status


def list_cuts(decisions: int) -> Iterator[Cut]:
    """What is cut, in order: inputs and messages of old decisions, long messages, old decisions, the long plan.

    Then what is left of the newest decision and the last start, words about what is well, all words.
    """
    for index in range(decisions - 1, 0, -1):
        yield partial(without_inputs, index=index)
    for index in range(decisions - 1, 0, -1):
        yield partial(without_message, index=index)
    yield partial(with_short_messages, limit=SHORT_MESSAGE)
    for count in range(decisions - 1, 0, -1):
        yield partial(with_decisions, count=count)
    yield partial(with_short_plan, limit=SHORT_PLAN)
    yield partial(with_short_messages, limit=SHORTEST_MESSAGE)
    yield partial(without_inputs, index=0)
    yield without_phases
    yield without_good_news
    yield partial(with_short_plan, limit=SHORTEST_MESSAGE)
    yield with_short_source
    yield partial(with_decisions, count=0)
    yield partial(with_short_messages, limit=0)
    yield partial(with_short_plan, limit=0)


def change_decision(status: Status, index: int, **values: object) -> Status:
    """The status with another decision in that place."""
    kept: list[Decision] = list(status.decisions)
    if index < len(kept):
        kept[index] = kept[index].model_copy(update=values)
    return status.model_copy(update={"decisions": tuple(kept)})


def without_inputs(status: Status, *, index: int) -> Status:
    """The figures that a decision was taken on."""
    return change_decision(status, index, inputs={})


def without_message(status: Status, *, index: int) -> Status:
    """A decision's sentence; its reason and numbers stay."""
    return change_decision(status, index, message="")


def with_decisions(status: Status, *, count: int) -> Status:
    """The newest decisions only."""
    return status.model_copy(update={"decisions": status.decisions[:count]})


def with_short_messages(status: Status, *, limit: int) -> Status:
    """At most so many characters in the message of each condition and decision."""
    short = tuple(c.model_copy(update={"message": c.message[:limit]}) for c in status.conditions)
    decisions = tuple(d.model_copy(update={"message": d.message[:limit]}) for d in status.decisions)
    return status.model_copy(update={"conditions": short, "decisions": decisions})


def with_short_plan(status: Status, *, limit: int) -> Status:
    """At most so many characters of the plan."""
    plan = status.plan if len(status.plan) <= limit else f"{status.plan[: max(0, limit - 3)]}..."[:limit]
    return status.model_copy(update={"plan": plan})


def without_phases(status: Status) -> Status:
    """The phases of the last start; its total stays."""
    start = status.cold_start
    return status.model_copy(update={"cold_start": start and start.model_copy(update={"phases": {}})})


def without_good_news(status: Status) -> Status:
    """The messages of conditions that are as they should be."""
    kept = (c.model_copy(update={"message": ""}) if is_good(c) else c for c in status.conditions)
    return status.model_copy(update={"conditions": tuple(kept)})


def is_good(condition: Condition) -> bool:
    """Whether the condition says that all is well."""
    wanted = ConditionStatus.FALSE if condition.type == ConditionType.DEGRADED else ConditionStatus.TRUE
    return condition.status is wanted


def with_short_source(status: Status) -> Status:
    """The start of the checkpoint's URI and of its revision: the spec has them whole."""
    found = status.checkpoint
    if found is None:
        return status
    short = {"uri": found.uri[:SHORT_TEXT], "revision": found.revision[:SHORT_TEXT]}
    return status.model_copy(update={"checkpoint": found.model_copy(update=short)})
