"""Whether a pod answers: a state machine as a table. Pure; the pod runs the checks.

One bad check leaves a pod out, the next good one takes it in again. With a check each 300 ms and 500 ms to answer, a
pod that stops is out within 0.8 s. Requests that run on a silent pod are given up only after it missed several checks:
a pod short of CPU for a moment must not lose what it is generating. One that says that it is not ready is alive: a
Triton that was told to end says so at once, and finishes what it has.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

CHECK_INTERVAL_SECONDS = 0.3
CHECK_TIMEOUT_SECONDS = 0.5
LOST_AFTER_MISSES = 4


class Check(StrEnum):
    """What came of one check."""

    READY = "Ready"
    NOT_READY = "NotReady"  # it answers, and takes nothing new
    NO_ANSWER = "NoAnswer"


class Health(StrEnum):
    NEW = "New"  # not checked yet
    ANSWERING = "Answering"
    SILENT = "Silent"  # gets nothing new
    LOST = "Lost"  # what ran there is given up


@dataclass(frozen=True, slots=True)
class PodHealth:
    state: Health = Health.NEW
    misses: int = 0  # checks without an answer in a row

    @property
    def answering(self) -> bool:
        return self.state is Health.ANSWERING


def next_health(health: PodHealth, check: Check) -> PodHealth:
    """The state after one more check."""
    if check is Check.READY:
        return PodHealth(Health.ANSWERING)
    if check is Check.NOT_READY:
        return PodHealth(Health.SILENT)
    misses = health.misses + 1
    return PodHealth(Health.LOST if misses >= LOST_AFTER_MISSES else Health.SILENT, misses)
