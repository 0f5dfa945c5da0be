"""Whether a pod answers: the table, and how soon a pod that stops is left out."""

from __future__ import annotations

import pytest
from hotstart.router.health import (
    CHECK_INTERVAL_SECONDS,
    CHECK_TIMEOUT_SECONDS,
    LOST_AFTER_MISSES,
    Check,
    Health,
    PodHealth,
    next_health,
)
from hypothesis import given
from hypothesis import strategies as st

READY, NOT_READY, NO_ANSWER = Check.READY, Check.NOT_READY, Check.NO_ANSWER


@pytest.mark.parametrize(
    ("checks", "state"),
    [
        ((), Health.NEW),
        ((READY,), Health.ANSWERING),
        ((NO_ANSWER,), Health.SILENT),  # one is enough, whatever was before
        ((READY, NO_ANSWER), Health.SILENT),
        ((READY, NO_ANSWER, READY), Health.ANSWERING),
        ((READY, *[NO_ANSWER] * (LOST_AFTER_MISSES - 1)), Health.SILENT),
        ((READY, *[NO_ANSWER] * LOST_AFTER_MISSES), Health.LOST),
        ((*[NO_ANSWER] * LOST_AFTER_MISSES, READY), Health.ANSWERING),
        ((READY, NOT_READY), Health.SILENT),
        ((READY, *[NOT_READY] * 100), Health.SILENT),  # it ends, and finishes what it has
        ((READY, *[NO_ANSWER] * (LOST_AFTER_MISSES - 1), NOT_READY, NO_ANSWER), Health.SILENT),
        ((READY, NOT_READY, *[NO_ANSWER] * LOST_AFTER_MISSES), Health.LOST),
    ],
)
def test_the_state_after_some_checks(checks: tuple[Check, ...], state: Health) -> None:
    health = PodHealth()
    for check in checks:
        health = next_health(health, check)
    assert health.state is state


@given(st.lists(st.sampled_from(Check), min_size=1))
def test_only_the_last_check_lets_a_pod_take_requests(checks: list[Check]) -> None:
    health = PodHealth()
    for check in checks:
        health = next_health(health, check)
    assert health.answering == (checks[-1] is READY)
    if health.state is Health.LOST:
        assert checks[-LOST_AFTER_MISSES:] == [NO_ANSWER] * LOST_AFTER_MISSES


def test_a_pod_that_stops_is_left_out_within_a_second() -> None:
    """At worst it stops right after a check: the next one begins an interval later and waits for its whole time."""
    assert CHECK_INTERVAL_SECONDS + CHECK_TIMEOUT_SECONDS < 1.0
