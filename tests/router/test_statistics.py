"""The seconds: exact integrals, counts that add up, and a cursor that gives each second once."""

from __future__ import annotations

import pytest
from hotstart.exchange.messages import LATENCY_EDGES_MS, ModelSecond
from hotstart.router.counters import Histogram, histogram_edges
from hotstart.router.statistics import KEPT_SECONDS, ModelBook, Outcome, decide_cancelled, last_full_second, page_end
from hypothesis import given
from hypothesis import strategies as st

START = 1_000_000.25


def read_all(book: ModelBook, now: float, cursor: int = 0) -> list[ModelSecond]:
    book.advance(now)
    return book.read(cursor, last_full_second(now))


def test_levels_are_integrated_exactly_over_second_boundaries() -> None:
    book = ModelBook("n/m", START)
    book.set_levels(START, in_flight=2, queued=1)
    book.set_levels(START + 2.0, in_flight=0, queued=3)
    book.set_levels(START + 2.5, in_flight=0, queued=0)
    seconds = read_all(book, START + 10)
    assert [(each.second, each.in_flight_sum, each.queued_sum) for each in seconds] == [
        (1_000_000, 1.5, 0.75),
        (1_000_001, 2.0, 1.0),
        (1_000_002, 0.5, 0.25 + 1.5),
    ]


steps = st.lists(
    st.tuples(
        st.floats(0, 5), st.integers(0, 9), st.integers(0, 9), st.none() | st.sampled_from(Outcome), st.floats(0, 30)
    ),
    max_size=40,
)


@given(steps)
def test_nothing_is_lost_and_nothing_counted_twice(steps: list[tuple[float, int, int, Outcome | None, float]]) -> None:
    book, now = ModelBook("n/m", START), START
    found: list[ModelSecond] = []
    cursor, expected, integral, level = 0, dict.fromkeys(Outcome, 0), 0.0, 0
    for passed, in_flight, queued, outcome, latency in steps:
        integral += level * passed
        now += passed
        book.set_levels(now, in_flight=in_flight, queued=queued)
        level = in_flight
        if outcome is not None:
            book.arrive(now)
            book.finish(now, outcome, latency, 250)
            expected[outcome] += 1
        found += read_all(book, now, cursor)
        cursor = last_full_second(now)
    book.set_levels(now, in_flight=0, queued=0)
    found += read_all(book, now + 2, cursor)
    assert len({each.second for each in found}) == len(found)
    assert [each.second for each in found] == sorted(each.second for each in found)
    for outcome, count in expected.items():
        assert sum(getattr(each, outcome.value) for each in found) == count
    assert sum(each.arrivals for each in found) == sum(expected.values())
    assert sum(each.in_flight_sum for each in found) == pytest.approx(integral, abs=1e-6)
    assert sum(sum(each.latency_buckets) for each in found) == expected[Outcome.COMPLETED]
    assert all(each.within_slo <= each.completed for each in found)


def test_only_full_seconds_are_given() -> None:
    book = ModelBook("n/m", START)
    book.arrive(START)
    assert read_all(book, START + 0.5) == []
    [second] = read_all(book, START + 1)
    assert (second.second, second.arrivals) == (1_000_000, 1)
    assert read_all(book, START + 100, cursor=second.second) == []


def test_seconds_are_kept_ten_minutes() -> None:
    book = ModelBook("n/m", START)
    for number in range(0, 2 * KEPT_SECONDS):
        book.arrive(START + number)
    now = START + 2 * KEPT_SECONDS
    assert len(read_all(book, now)) == KEPT_SECONDS
    assert read_all(book, now + 10 * KEPT_SECONDS) == []


def test_a_clock_that_goes_back_a_little_stands() -> None:
    book = ModelBook("n/m", START)
    book.set_levels(START, in_flight=1, queued=0)
    book.set_levels(START - 0.5, in_flight=1, queued=0)
    [first, *_] = read_all(book, START + 1)
    assert first.in_flight_sum == 0.75


def test_a_clock_that_is_put_back_begins_anew_where_it_stands() -> None:
    book = ModelBook("n/m", START + 600)
    book.set_levels(START + 600, in_flight=1, queued=0)
    read_all(book, START + 610)
    book.set_levels(START, in_flight=1, queued=0)
    assert [(each.second, each.in_flight_sum) for each in read_all(book, START + 3)[1:]] == [
        (1_000_001, 1.0),
        (1_000_002, 1.0),
    ]


def test_a_clock_that_is_put_forward_by_years_costs_ten_minutes_of_seconds() -> None:
    book = ModelBook("n/m", START)
    book.set_levels(START, in_flight=1, queued=0)
    assert len(read_all(book, START + 1e9)) == KEPT_SECONDS


def test_latency_falls_into_its_bucket_and_the_slo_counts_exactly() -> None:
    book = ModelBook("n/m", START)
    for milliseconds in (250.0, 250.5, LATENCY_EDGES_MS[0], 10**6):
        book.finish(START, Outcome.COMPLETED, milliseconds / 1000, 250)
    [second] = read_all(book, START + 1)
    assert second.within_slo == 2 and second.completed == 4
    assert second.latency_buckets[0] == 1 and second.latency_buckets[-1] == 1
    assert len(second.latency_buckets) == len(LATENCY_EDGES_MS) + 1


def test_a_cancel_after_the_slo_is_a_violation_and_one_before_is_censored() -> None:
    assert decide_cancelled(0.250, 250) is Outcome.CANCELLED
    assert decide_cancelled(0.251, 250) is Outcome.CANCELLED_LATE


def test_the_drain_rate_is_what_ended_at_pods() -> None:
    book = ModelBook("n/m", START)
    for number in range(100):
        book.finish(START + number * 0.1, Outcome.COMPLETED, 0.1, 250)
        book.finish(START + number * 0.1, Outcome.REJECTED, 0.0, 250)
    assert book.drained_per_second() == pytest.approx(10.0, rel=0.05)
    assert ModelBook("n/m", START).drained_per_second() == 0.0


def test_a_report_is_read_in_pages() -> None:
    now = 10_000.5
    assert page_end(9_990, now, models=2, most=1000) == 9_999
    assert page_end(0, now, models=100, most=1000) == 9_999 - KEPT_SECONDS + 10
    assert page_end(9_999, now, models=100, most=1000) == 9_999
    assert page_end(20_000, now, models=0, most=1000) == 9_999


def test_the_histogram_has_an_edge_at_the_slo_and_is_cumulative() -> None:
    histogram = Histogram(histogram_edges(333))
    for seconds in (0.333, 0.334, 100.0):
        histogram.observe(seconds)
    buckets = dict(histogram.cumulative())
    assert buckets["0.333"] == 1 and buckets["0.35"] == 2 and buckets["+Inf"] == 3
    assert len(histogram_edges(250)) == len(set(histogram_edges(250)))
