"""The figures against a reference, and what may be believed of them."""

import pytest
from hotstart.loadtest.histogram import quantile
from hotstart.loadtest.machine import parse_processor_times, stolen_share
from hotstart.loadtest.sample import Outcome, Sample
from hotstart.loadtest.summary import decide_void, make_quantiles, summarise
from hypothesis import given
from hypothesis import strategies as st

values = st.lists(st.floats(min_value=0, max_value=100), min_size=1, max_size=300)


def reference(ordered: list[float], percent: int) -> float:
    """Nearest rank by its definition and in whole numbers: the first sample with enough samples not above it."""
    for value in ordered:
        if sum(other <= value for other in ordered) * 100 >= percent * len(ordered):
            return value
    raise AssertionError("the last sample always has enough")


@given(values=values, percent=st.integers(1, 100))
def test_quantiles_are_the_nearest_rank(values: list[float], percent: int) -> None:
    ordered = sorted(values)
    assert quantile(ordered, percent / 100) == reference(ordered, percent)


def test_quantiles_of_known_samples() -> None:
    ordered = [float(value) for value in range(1, 101)]
    assert [quantile(ordered, q) for q in (0.5, 0.9, 0.95, 0.99, 1)] == [50, 90, 95, 99, 100]
    assert quantile([7.0], 0.5) == 7.0
    assert quantile([], 0.5) is None
    with pytest.raises(ValueError, match="fraction"):
        quantile(ordered, 0)


@given(parts=st.lists(values, min_size=1, max_size=4))
def test_samples_of_several_processes_merge_to_the_quantiles_of_all(parts: list[list[float]]) -> None:
    together = [value for part in parts for value in part]
    assert make_quantiles(together) == make_quantiles(sorted(together, reverse=True))
    assert make_quantiles(together).p95 == reference(sorted(together), 95)


def ok(intended: float, latency: float, **more: object) -> Sample:
    return Sample(intended, 0.0001, latency, Outcome.OK, **more)  # type: ignore[arg-type]


def test_failures_are_counted_by_reason_and_in_no_quantile() -> None:
    samples = [
        ok(0, 0.1),
        ok(1, 0.2),
        Sample(2, 0.0, 30.0, Outcome.FAILED, "timeout", "too late"),
        Sample(3, 0.0, 0.1, Outcome.FAILED, "http_503", "first"),
        Sample(4, 0.0, 0.1, Outcome.FAILED, "http_503", "second"),
    ]
    summary = summarise(samples, schedule_s=5, drift_limit_s=0.005)
    assert (summary.requests, summary.ok, summary.failed) == (5, 2, 3)
    assert summary.failures == {"http_503": 2, "timeout": 1}
    assert summary.failure_details["http_503"] == "first"
    assert summary.latency.max == 0.2
    assert summary.rate == 1.0
    assert summary.duration_s == 32.0
    assert summary.rate_achieved == pytest.approx(2 / 32)


def test_attainment_counts_failures_and_late_cancels_as_missed_and_leaves_early_cancels_out() -> None:
    samples = [
        ok(0, 0.250),
        ok(0, 0.251),
        Sample(0, 0.0, 0.01, Outcome.FAILED, "http_500"),
        Sample(0, 0.0, 0.300, Outcome.CANCELLED),
        Sample(0, 0.0, 0.100, Outcome.CANCELLED),
        Sample(0, 0.0, 0.100, Outcome.UNFINISHED),
    ]
    summary = summarise(samples, schedule_s=1, drift_limit_s=0.005, slo_s=0.25)
    assert summary.slo_attainment == pytest.approx(1 / 4)
    assert (summary.cancelled, summary.unfinished) == (2, 1)


def test_tokens_are_those_of_the_server_or_else_pieces_of_the_stream() -> None:
    assert summarise([ok(0, 1)], schedule_s=1, drift_limit_s=1).completion_tokens is None
    assert summarise([ok(0, 1, tokens=5), ok(0, 1, chunks=2)], schedule_s=1, drift_limit_s=1).completion_tokens == 7


def test_a_run_is_void_above_its_drift_limit_and_says_what_to_do() -> None:
    late = [Sample(0, 0.006, 0.1, Outcome.OK)] * 10
    told = summarise(late, schedule_s=1, drift_limit_s=0.005).void_reason
    assert "void" in told
    assert "6.00 ms" in told
    assert "5.00 ms" in told
    assert "--processes" in told
    assert summarise(late, schedule_s=1, drift_limit_s=0.006).void_reason == ""


def test_a_run_that_sent_nothing_is_void_and_has_no_figures() -> None:
    summary = summarise([], schedule_s=0, drift_limit_s=0.005, slo_s=0.25)
    assert "no request" in summary.void_reason
    assert summary.latency.p50 is None
    assert summary.slo_attainment is None
    assert summary.rate == 0


def test_one_late_request_in_a_hundred_does_not_void_a_run_and_two_do() -> None:
    assert decide_void(make_quantiles([0.0] * 99 + [1.0]), 0.005) == ""
    assert decide_void(make_quantiles([0.0] * 98 + [1.0] * 2), 0.005) != ""


def test_a_void_run_names_the_hypervisor_when_it_took_the_processors_away() -> None:
    late = make_quantiles([0.02] * 10)
    assert "hypervisor kept 22% of" in decide_void(late, 0.005, stolen=0.22)
    assert "hypervisor" not in decide_void(late, 0.005, stolen=0.01)
    assert "hypervisor" not in decide_void(late, 0.005, stolen=None)


def test_stolen_time_is_the_eighth_counter_of_the_processors() -> None:
    before = parse_processor_times("cpu  100 0 100 800 0 0 0 0 0 0")
    after = parse_processor_times("cpu  150 0 120 810 0 0 0 20 50 0")
    assert stolen_share(before, after) == pytest.approx(0.2)
    assert stolen_share(before, before) is None
    assert stolen_share(None, after) is None
    assert parse_processor_times("cpu 1 2 3") is None
