"""The demo's figures: what build/demo.json holds, and the sentences about it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from hotstart.demo.kube import condition
from hotstart.demo.load import LoadRun
from hotstart.demo.story import StepFailed
from hotstart.demo.watch import latency
from hotstart.loadtest.durations import parse_duration
from hotstart.loadtest.sample import Sample
from hotstart.loadtest.summary import make_quantiles
from hotstart.operator.api import CompletionModel
from hotstart.operator.api.engine import ProfileStatus
from hotstart.operator.core.capacity import decide_capacity

HEADLINES = (
    "total_seconds",
    "engine_build_seconds",
    "agreement",
    "calibrate_seconds",
    "lone_request_ms",
    "calibrated_concurrency",
    "first_pod_seconds",
    "second_pod_seconds",
    "p95_one_replica_ms",
    "p95_two_replicas_ms",
    "p95_ms",
    "p95_last_minute_ms",
    "p95_status_ms",
    "slo_attainment",
    "requests",
    "failed",
    "scaled_to",
    "builds",
)
OF_THE_CLIENT = (
    *("requests", "failed", "rate", "slo_ms", "slo_attainment"),
    *("p50_ms", "p90_ms", "p95_ms", "p99_ms", "drift_p99_ms"),
)
SETTLED_SECONDS = 10.0  # after the second pod serves: what one replica left in the queue is done
MINUTE = timedelta(seconds=60)  # the window of status.latency


def phases(prefix: str, start: dict[str, Any]) -> dict[str, float]:
    """A pod's start and its phases in seconds, flat."""
    found = {f"phase_{prefix}_{name}_seconds": ms / 1000 for name, ms in start["phases"].items()}
    return {**found, f"{prefix}_pod_seconds": start["totalMilliseconds"] / 1000}


def describe_start(start: dict[str, Any]) -> str:
    """One line: total and phases."""
    parts = ", ".join(f"{name} {ms / 1000:.2f}" for name, ms in start["phases"].items())
    return f"{start['pod']}: {start['totalMilliseconds'] / 1000:.2f} s from decision to serving ({parts} s)"


def profile_of(engine: dict[str, Any]) -> ProfileStatus:
    """What calibration measured.

    Raises:
        StepFailed: nothing; with the Engine's word why.
    """
    profile = engine["status"].get("profile")
    if profile is None:
        raise StepFailed(f"the engine was not calibrated: {condition(engine, 'Ready').get('message')}")
    return ProfileStatus.model_validate(profile)


def describe_engine(engine: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """How long the engine took, how far it agrees with its checkpoint, how fast it is."""
    profile = profile_of(engine)
    capacity = decide_capacity(CompletionModel.from_api(model).spec, profile)
    return {
        "engine_build_seconds": engine["status"]["buildSeconds"],
        "agreement": engine["status"]["verification"]["agreement"],
        "calibrate_seconds": profile.seconds,
        "calibration_noise": profile.noise,
        "lone_request_ms": profile.lone_milliseconds,
        "calibrated_concurrency": capacity.concurrency,
        "calibrated_work": capacity.work,
        "capacity_origin": str(capacity.origin),
    }


def tell_engine(engine: dict[str, Any], model: dict[str, Any]) -> str:
    """Verification and calibration, and what follows for the SLO, in three lines."""
    verified, profile = engine["status"]["verification"], profile_of(engine)
    attainable = condition(model, "SLOAttainable")
    points = ", ".join(f"{point.concurrency}: {point.p95_milliseconds} ms" for point in profile.load)
    return (
        f"verified: {verified.get('agreed')} of {verified.get('compared')} clear positions agree, "
        f"{verified.get('agreement')} of all {verified.get('positions')}; reference {verified.get('reference')}\n"
        f"calibrated in {profile.seconds} s on {profile.cpus} CPUs: a lone request of {profile.input_tokens} + "
        f"{profile.new_tokens} tokens {profile.lone_milliseconds} ms; prefill {profile.prefill_tokens_per_second} and "
        f"decode {profile.decode_tokens_per_second} tokens/s; P95 by requests at once: {points}; "
        f"{profile.repeatability}, noise {profile.noise}\n"
        f"SLOAttainable={attainable.get('status')} ({attainable.get('reason')}): {attainable.get('message')}"
    )


def describe_load(run: LoadRun) -> dict[str, Any]:
    """The client's figures, before and after the second pod served, and beside those in status."""
    told, samples = run.result.to_json(), run.result.samples
    status_told = run.told_at - run.result.started_at
    return {
        **{name: told[name] for name in OF_THE_CLIENT},
        "scaled_to": max(ready for _, ready in run.looks),
        "p95_one_replica_ms": p95(s for s in samples if max(ready_before(run, s.intended, 0)) < 2),
        "p95_two_replicas_ms": p95(s for s in samples if min(ready_before(run, s.intended, SETTLED_SECONDS)) >= 2),
        "p95_last_minute_ms": p95(s for s in samples if status_told - MINUTE <= end_of(s) < status_told),
        "p95_status_ms": round(parse_duration(latency(run.model)) * 1000),
    }


def ready_before(run: LoadRun, instant: float, back: float) -> list[int]:
    """How many replicas were ready at that instant of the load and in the ``back`` seconds before it."""
    since = [ready for at, ready in run.looks if at <= instant - back][-1:]  # what held when the stretch began
    return [*(since or [0]), *(ready for at, ready in run.looks if instant - back < at <= instant)]


def end_of(sample: Sample) -> timedelta:
    """When its last byte came, from the start of the load."""
    return timedelta(seconds=sample.intended + sample.latency)


def p95(samples: Iterable[Sample]) -> float | None:
    """Of their latency, by the client's clock (ms); None without samples."""
    found = make_quantiles([sample.latency for sample in samples]).p95
    return None if found is None else round(found * 1000, 1)


def tell_load(found: dict[str, Any]) -> str:
    """What the load showed, for people."""
    return (
        f"{found['requests']} requests, {found['failed']} failed; {found['slo_attainment']:.1%} within the SLO of "
        f"{found['slo_ms']:.0f} ms; P50 {found['p50_ms']:.0f} ms, P95 {found['p95_ms']:.0f} ms\n"
        f"P95 of what was asked before the second pod served: {found['p95_one_replica_ms']} ms; "
        f"from {SETTLED_SECONDS:.0f} s after it did: {found['p95_two_replicas_ms']} ms\n"
        f"P95 in status, of the minute before it was written: {found['p95_status_ms']} ms (in the router, from receipt "
        f"to last byte); by the client of the same minute: {found['p95_last_minute_ms']} ms (from the time it was due)"
    )
