"""Samples into figures. Pure: the same samples give the same summary, whichever process they came from."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from hotstart.loadtest.durations import format_milliseconds
from hotstart.loadtest.histogram import quantile
from hotstart.loadtest.sample import Outcome, Sample

# From here on the share of stolen processor time is worth a sentence: 2 % is the p99 of a drift twice over.
_NOTABLE_THEFT = 0.02


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Nearest-rank quantiles of one measured time, in seconds; all None when nothing was measured."""

    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None
    max: float | None


@dataclass(frozen=True)
class Summary:
    """The figures of a run. Times in seconds, rates per second.

    latency: of the requests that succeeded. Failures are in no quantile; they are counted, and they miss the SLO.
    duration_s: from the start to the last end of a request. rate: requests sent per second of the schedule.
    rate_achieved: successful requests per second of duration_s.
    completion_tokens: by the server's count (`usage`), or pieces of streamed text where it gave none; None if neither.
    slo_attainment: share of requests answered within the SLO. A failure misses it; so does one that the client gave up
    on after the SLO; one given up on earlier (or interrupted) says nothing and is left out.
    """

    requests: int
    ok: int
    failed: int
    cancelled: int
    unfinished: int
    failures: dict[str, int] = field(default_factory=dict)
    failure_details: dict[str, str] = field(default_factory=dict)
    duration_s: float = 0.0
    rate: float = 0.0
    rate_achieved: float = 0.0
    latency: Quantiles = field(default_factory=lambda: make_quantiles(()))
    first_token: Quantiles = field(default_factory=lambda: make_quantiles(()))
    drift: Quantiles = field(default_factory=lambda: make_quantiles(()))
    completion_tokens: int | None = None
    slo_attainment: float | None = None
    void_reason: str = ""


def make_quantiles(values: Sequence[float]) -> Quantiles:
    """Return the quantiles of `values` in any order."""
    ordered = sorted(values)
    return Quantiles(
        p50=quantile(ordered, 0.50),
        p90=quantile(ordered, 0.90),
        p95=quantile(ordered, 0.95),
        p99=quantile(ordered, 0.99),
        max=ordered[-1] if ordered else None,
    )


def summarise(
    samples: Sequence[Sample],
    *,
    schedule_s: float,
    drift_limit_s: float,
    slo_s: float | None = None,
    stolen: float | None = None,
) -> Summary:
    """Return the figures of `samples`, from all processes together.

    schedule_s: length of the schedule as far as it was followed. stolen: see LoadResult.
    """
    by_outcome = Counter(sample.outcome for sample in samples)
    answered = [sample for sample in samples if sample.outcome is Outcome.OK]
    failed = [sample for sample in samples if sample.outcome is Outcome.FAILED]
    duration = max((sample.intended + sample.latency for sample in samples), default=0.0)
    drift = make_quantiles([sample.drift for sample in samples])
    return Summary(
        requests=len(samples),
        ok=len(answered),
        failed=len(failed),
        cancelled=by_outcome[Outcome.CANCELLED],
        unfinished=by_outcome[Outcome.UNFINISHED],
        failures=dict(Counter(sample.reason for sample in failed).most_common()),
        failure_details={sample.reason: sample.detail for sample in reversed(failed)},
        duration_s=duration,
        rate=_ratio(len(samples), schedule_s or duration),
        rate_achieved=_ratio(len(answered), duration),
        latency=make_quantiles([sample.latency for sample in answered]),
        first_token=make_quantiles([sample.first_token for sample in answered if sample.first_token is not None]),
        drift=drift,
        completion_tokens=_count_tokens(answered),
        slo_attainment=None if slo_s is None else _attainment(samples, slo_s),
        void_reason=decide_void(drift, drift_limit_s, stolen),
    )


def decide_void(drift: Quantiles, limit_s: float, stolen: float | None = None) -> str:
    """Return why a run must not be believed, or an empty text when it may be."""
    if drift.p99 is None:
        return "This run is void: no request was sent."
    if drift.p99 <= limit_s:
        return ""
    cause = ""
    if stolen is not None and stolen >= _NOTABLE_THEFT:
        cause = f" The hypervisor kept {stolen:.0%} of this machine's processor time from it meanwhile."
    return (
        f"This run is void: the p99 of the send drift is {format_milliseconds(drift.p99)}, above the limit of "
        f"{format_milliseconds(limit_s)}, so the figures tell of a late load generator and not of the server.{cause} "
        "Lower --rate (or --speed), raise --processes up to the idle cores, or send from another machine."
    )


def _attainment(samples: Sequence[Sample], slo_s: float) -> float | None:
    within = missed = 0
    for sample in samples:
        if sample.outcome is Outcome.OK and sample.latency <= slo_s:
            within += 1
        elif sample.outcome in (Outcome.OK, Outcome.FAILED) or sample.latency > slo_s:
            missed += 1
    return within / (within + missed) if within + missed else None


def _count_tokens(answered: Sequence[Sample]) -> int | None:
    counted = [sample.tokens if sample.tokens is not None else sample.chunks for sample in answered]
    known = any(sample.tokens is not None or sample.chunks for sample in answered)
    return sum(counted) if known else None


def _ratio(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0
