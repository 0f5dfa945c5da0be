"""Whether a pod answers: a state machine as a table. Pure; the pod runs the checks.

One silent check leaves a pod out, the next good one takes it in again. With a check each 300 ms and 500 ms to answer, a
pod that stops is out within 0.8 s. Requests that run on a silent pod are given up only after it missed several checks:
a pod short of CPU for a moment must not lose what it is generating.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

CHECK_INTERVAL_SECONDS = 0.3
CHECK_TIMEOUT_SECONDS = 0.5
LOST_AFTER_MISSES = 4


class Health(StrEnum):
    NEW = "New"  # not checked yet
    ANSWERING = "Answering"
    SILENT = "Silent"  # gets nothing new
    LOST = "Lost"  # what ran there is given up


@dataclass(frozen=True, slots=True)
class PodHealth:
    state: Health = Health.NEW
    misses: int = 0  # checks missed in a row

    @property
    def answering(self) -> bool:
        return self.state is Health.ANSWERING

    @property
    def unreachable(self) -> bool:
        return self.state in (Health.SILENT, Health.LOST)


def next_health(health: PodHealth, answered: bool) -> PodHealth:
    """The state after one more check."""
    if answered:
        return PodHealth(Health.ANSWERING)
    misses = health.misses + 1
    return PodHealth(Health.LOST if misses >= LOST_AFTER_MISSES else Health.SILENT, misses)
