"""The schedule is right before the first request is sent: counts, gaps, order, speed."""

from itertools import pairwise

import pytest
from hotstart.loadtest.arrivals import (
    TraceRow,
    choose_prompts,
    constant_arrivals,
    mark_cancels,
    poisson_arrivals,
    shard_arrivals,
    trace_arrivals,
)
from hypothesis import given
from hypothesis import strategies as st

rates = st.floats(min_value=0.5, max_value=500)
durations = st.floats(min_value=2, max_value=20)
rows = st.lists(
    st.builds(
        TraceRow,
        at=st.floats(min_value=0, max_value=3600),
        context_tokens=st.integers(0, 8000),
        generated_tokens=st.integers(0, 2000),
    ),
    min_size=1,
    max_size=50,
)


@given(rate=rates, duration=durations)
def test_constant_arrivals_are_even_and_as_many_as_rate_times_duration(rate: float, duration: float) -> None:
    arrivals = constant_arrivals(rate, duration)
    assert abs(len(arrivals) - rate * duration) <= 1
    assert arrivals[0].offset == 0
    assert all(arrival.offset == pytest.approx(index / rate) for index, arrival in enumerate(arrivals))
    assert arrivals[-1].offset < duration


@pytest.mark.parametrize(("rate", "duration", "count"), [(0.1, 30, 3), (20, 30, 600), (3, 0.7, 2), (10, 0.3, 3)])
def test_binary_fractions_do_not_lose_a_request(rate: float, duration: float, count: int) -> None:
    assert len(constant_arrivals(rate, duration)) == count


@given(rate=st.floats(min_value=5, max_value=200), seed=st.integers(0, 2**31))
def test_poisson_arrivals_are_sorted_inside_the_run_and_the_same_for_a_seed(rate: float, seed: int) -> None:
    arrivals = poisson_arrivals(rate, 10, seed=seed)
    offsets = [arrival.offset for arrival in arrivals]
    assert offsets == sorted(offsets)
    assert offsets[0] > 0
    assert offsets[-1] < 10
    # A Poisson count of mean m strays by more than 8 standard deviations less than once in 10^14 runs.
    assert abs(len(offsets) - rate * 10) < 8 * (rate * 10) ** 0.5
    assert poisson_arrivals(rate, 10, seed=seed) == arrivals


def test_poisson_gaps_vary_as_exponential_gaps_do() -> None:
    offsets = [arrival.offset for arrival in poisson_arrivals(1000, 20, seed=7)]
    gaps = [after - before for before, after in pairwise(offsets)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(1 / 1000, rel=0.05)
    assert deviation / mean == pytest.approx(1, rel=0.05)  # 0 for even gaps


@given(rows=rows, speed=st.floats(min_value=0.1, max_value=100))
def test_speed_divides_every_offset_of_a_trace(rows: list[TraceRow], speed: float) -> None:
    recorded = trace_arrivals(rows)
    hurried = trace_arrivals(rows, speed=speed)
    assert len(recorded) == len(hurried) == len(rows)
    assert recorded[0].offset == 0
    assert [arrival.offset for arrival in recorded] == sorted(arrival.offset for arrival in recorded)
    for slow, fast in zip(recorded, hurried, strict=True):
        assert fast.offset == pytest.approx(slow.offset / speed)
        assert fast.max_tokens == slow.max_tokens


def test_a_trace_is_bounded_by_limit_duration_and_tokens() -> None:
    rows = [TraceRow(10 + second, 100 * second, 10 * second) for second in range(10)]
    assert len(trace_arrivals(rows, limit=3)) == 3
    assert [arrival.offset for arrival in trace_arrivals(rows, speed=2, duration=2)] == [0, 0.5, 1, 1.5]
    bounded = trace_arrivals(rows, max_tokens=25, max_context_tokens=350)
    assert [arrival.max_tokens for arrival in bounded[:4]] == [1, 10, 20, 25]  # a recorded 0 asks for 1
    assert [arrival.context_tokens for arrival in bounded[:5]] == [1, 100, 200, 300, 350]


@given(count=st.integers(1, 200), processes=st.integers(1, 8))
def test_the_shares_of_the_processes_are_together_the_whole(count: int, processes: int) -> None:
    arrivals = constant_arrivals(10, count / 10)
    shares = shard_arrivals(arrivals, processes)
    assert len(shares) == processes
    assert sorted((arrival for share in shares for arrival in share), key=lambda a: a.offset) == list(arrivals)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(fraction=st.floats(0, 1), seed=st.integers(0, 1000))
def test_the_asked_share_is_marked_to_be_cancelled(fraction: float, seed: int) -> None:
    marked = mark_cancels(constant_arrivals(10, 5), fraction, seed=seed)
    assert sum(arrival.cancel for arrival in marked) == round(fraction * 50)
    assert mark_cancels(constant_arrivals(10, 5), fraction, seed=seed) == marked


def test_prompts_are_drawn_from_all_and_the_same_for_a_seed() -> None:
    chosen = choose_prompts(constant_arrivals(100, 2), 4, seed=1)
    assert {arrival.prompt for arrival in chosen} == {0, 1, 2, 3}
    assert choose_prompts(constant_arrivals(100, 2), 4, seed=1) == chosen
    assert choose_prompts(constant_arrivals(100, 2), 4, seed=2) != chosen


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: constant_arrivals(0, 1), "--rate"),
        (lambda: constant_arrivals(float("nan"), 1), "--rate"),
        (lambda: constant_arrivals(1, 0), "--duration"),
        (lambda: constant_arrivals(0.1, 1), "less than one request"),
        (lambda: constant_arrivals(1e308, 10), "more than 10000000 requests"),
        (lambda: poisson_arrivals(1e308, 10, seed=0), "more than 10000000 requests"),
        (lambda: poisson_arrivals(-1, 1, seed=0), "--rate"),
        (lambda: poisson_arrivals(0.001, 0.001, seed=0), "no request"),
        (lambda: trace_arrivals([]), "no request"),
        (lambda: trace_arrivals([TraceRow(0, 1, 1)], speed=0), "--speed"),
        (lambda: trace_arrivals([TraceRow(0, 1, 1)], limit=0), "--limit"),
        (lambda: trace_arrivals([TraceRow(0, 1, 1)], duration=0), "--duration"),
        (lambda: mark_cancels((), 1.5, seed=0), "--cancel-fraction"),
        (lambda: shard_arrivals((), 0), "--processes"),
        (lambda: choose_prompts((), 0, seed=0), "no prompt"),
    ],
)
def test_what_cannot_be_is_refused_by_name(make: object, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()  # type: ignore[operator]
