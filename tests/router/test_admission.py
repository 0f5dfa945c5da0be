"""What becomes of a request: tables and properties of the decisions, and the queue against a plain list."""

from __future__ import annotations

import pytest
from hotstart.exchange.messages import ModelRoute
from hotstart.router.admission import (
    MAX_RETRY_AFTER_SECONDS,
    LaneView,
    Phase,
    Reason,
    decide_admission,
    decide_waiting,
    phase_of,
    retry_after_seconds,
    wait_ends,
)
from hotstart.router.queue import WaitQueue
from hotstart.router.refusals import make_refusal
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

BUSY = LaneView(phase=Phase.PRESENT, pod=None, answering=True, queued=0, queue_limit=2, queue_deadline=5.0, hold=30.0)


def view(**changes: object) -> LaneView:
    return LaneView(**{**{name: getattr(BUSY, name) for name in LaneView.__slots__}, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pod": "a"}, Reason.SLOT_FREE),
        ({"pod": "a", "queued": 2}, Reason.SLOT_FREE),  # those that wait cannot use it
        ({}, Reason.ALL_BUSY),
        ({"queued": 2}, Reason.QUEUE_FULL),
        ({"queue_limit": 0}, Reason.QUEUE_FULL),
        ({"pod": "a", "queue_limit": 0}, Reason.SLOT_FREE),
        ({"answering": False}, Reason.REPLICAS_SILENT),
        ({"answering": False, "queued": 2}, Reason.QUEUE_FULL),
        ({"phase": Phase.COMING, "answering": False}, Reason.REPLICA_COMING),
        ({"phase": Phase.COMING, "answering": False, "queued": 2}, Reason.QUEUE_FULL),
        ({"phase": Phase.ABSENT, "answering": False}, Reason.NO_REPLICA),
        ({"phase": Phase.ABSENT, "answering": False, "queued": 2}, Reason.NO_REPLICA),
    ],
)
def test_what_a_newcomer_gets(changes: dict[str, object], reason: Reason) -> None:
    decision = decide_admission(view(**changes))
    assert decision.reason is reason
    assert (decision.pod is not None) == (reason is Reason.SLOT_FREE)


@pytest.mark.parametrize(
    ("changes", "waited", "reason"),
    [
        ({}, 4.9, Reason.ALL_BUSY),
        ({}, 5.0, Reason.QUEUE_DEADLINE),
        ({"answering": False}, 4.9, Reason.REPLICAS_SILENT),
        ({"answering": False}, 5.1, Reason.NONE_ANSWERS),
        ({"phase": Phase.COMING}, 29.9, Reason.REPLICA_COMING),
        ({"phase": Phase.COMING}, 30.0, Reason.HOLD_EXPIRED),
        ({"phase": Phase.ABSENT}, 0.0, Reason.NO_REPLICA),
        ({"queued": 2}, 0.0, Reason.ALL_BUSY),  # the limit of length is for newcomers
    ],
)
def test_what_one_that_waits_gets(changes: dict[str, object], waited: float, reason: Reason) -> None:
    assert decide_waiting(view(**changes), 100.0, 0.0, 100.0 + waited).reason is reason


def test_the_wait_for_a_slot_begins_when_the_first_replica_is_there() -> None:
    held_since, replica_since = 100.0, 125.0
    assert decide_waiting(BUSY, held_since, replica_since, 129.0).reason is Reason.ALL_BUSY
    assert decide_waiting(BUSY, held_since, replica_since, 130.0).reason is Reason.QUEUE_DEADLINE


views = st.builds(
    LaneView,
    phase=st.sampled_from(Phase),
    pod=st.none() | st.just("a"),
    answering=st.booleans(),
    queued=st.integers(0, 5),
    queue_limit=st.integers(0, 5),
    queue_deadline=st.floats(0, 60),
    hold=st.floats(0, 60),
)


def test_replicas_that_come_and_go_do_not_prolong_a_wait() -> None:
    coming = view(phase=Phase.COMING)
    for replicas_changed in (100.0, 120.0, 134.0, 1000.0):
        assert wait_ends(coming, 100.0, replicas_changed) <= 135.0
        assert wait_ends(BUSY, 100.0, replicas_changed) <= 135.0


@given(views, st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e6))
def test_who_began_to_wait_earlier_is_not_refused_later(
    view: LaneView, since: float, later: float, phase_since: float
) -> None:
    assert wait_ends(view, min(since, later), phase_since) <= wait_ends(view, max(since, later), phase_since)


@given(views, st.floats(0, 1e6), st.floats(0, 1e6))
def test_every_wait_ends_at_the_time_it_says(view: LaneView, since: float, phase_since: float) -> None:
    ends = wait_ends(view, since, phase_since)
    assert not decide_waiting(view, since, phase_since, ends).waits
    assert decide_waiting(view, since, phase_since, ends).reason is not Reason.SLOT_FREE


@given(views)
def test_a_newcomer_waits_only_within_the_limit_and_is_told_why_otherwise(view: LaneView) -> None:
    decision = decide_admission(view)
    if decision.waits:
        assert view.queued < view.queue_limit
    elif decision.pod is None:
        refusal = make_refusal(decision.reason, ModelRoute(model="n/m"), 3)
        assert refusal.status in (429, 503) and refusal.message and refusal.code
        assert (refusal.retry_after is None) == (decision.reason is Reason.NO_REPLICA)


def test_the_phase_follows_the_route() -> None:
    assert phase_of(endpoints=1, coming=True) is phase_of(endpoints=1, coming=False) is Phase.PRESENT
    assert phase_of(endpoints=0, coming=True) is Phase.COMING
    assert phase_of(endpoints=0, coming=False) is Phase.ABSENT


@pytest.mark.parametrize(
    ("queued", "rate", "fallback", "seconds"),
    [(0, 10.0, 5.0, 1), (99, 10.0, 5.0, 10), (100, 10.0, 5.0, 11), (3, 0.0, 4.5, 5), (10_000, 0.1, 1.0, 60)],
)
def test_retry_after_is_the_time_to_drain(queued: int, rate: float, fallback: float, seconds: int) -> None:
    assert retry_after_seconds(queued, rate, fallback) == seconds


@given(st.integers(0, 10**6), st.floats(0, 1e6), st.floats(0, 1e6))
def test_retry_after_is_within_bounds(queued: int, rate: float, fallback: float) -> None:
    assert 1 <= retry_after_seconds(queued, rate, fallback) <= MAX_RETRY_AFTER_SECONDS


class QueueAgainstList(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.queue: WaitQueue[int] = WaitQueue()
        self.model: list[tuple[int, int]] = []
        self.again: set[int] = set()
        self.made = 0

    @rule(again=st.booleans())
    def put(self, again: bool) -> None:
        self.made += 1
        ticket = self.queue.put(self.made, float(self.made), again=again)
        before = [index for index, (ticket, _) in enumerate(self.model) if ticket in self.again]
        self.model.insert(len(before) if again else len(self.model), (ticket, self.made))
        if again:
            self.again.add(ticket)

    @rule(index=st.integers(0, 20))
    def drop(self, index: int) -> None:
        if index < len(self.model):
            ticket, item = self.model.pop(index)
            assert self.queue.drop(ticket) == item
            assert self.queue.drop(ticket) is None

    @invariant()
    def same_order(self) -> None:
        assert [(place.ticket, place.item) for place in self.queue.places()] == self.model
        assert len(self.queue) == len(self.model)
        longest = self.queue.longest_waiting()
        assert (longest and longest.item) == min((item for _, item in self.model), default=None)


TestQueue = QueueAgainstList.TestCase
