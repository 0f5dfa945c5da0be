"""The agent's metrics in Prometheus' text format, made from its report. Pure.

Written out by hand: the client library would cost the sidecar of every pod several megabytes for seven numbers.
"""

from __future__ import annotations

from collections.abc import Iterable

from hotstart.exchange.messages import PodReport, PodState

Sample = tuple[dict[str, str], float]


def make_exposition(report: PodReport) -> str:
    """All metrics of one agent."""
    families = (
        _family("state", "gauge", "1 for the pod's state.", _states(report)),
        _family("phase_seconds", "gauge", "Time that each phase of coming up took.", _phases(report)),
        _family("fetch_bytes", "gauge", "Bytes of the engine that are there.", [({}, report.bytes_done)]),
        _family("engine_bytes", "gauge", "Bytes of the engine.", [({}, report.bytes_total)]),
        _family("in_flight", "gauge", "Requests that the pod has, waiting ones included.", [({}, report.in_flight)]),
        _family("queued", "gauge", "Requests that wait for a worker.", [({}, report.queued)]),
        _family("failed", "gauge", "1 with the reason while the pod has failed.", _failures(report)),
    )
    return "\n".join(families) + "\n"


def _states(report: PodReport) -> list[Sample]:
    return [({"state": state.value}, float(state is report.state)) for state in PodState]


def _phases(report: PodReport) -> list[Sample]:
    return [({"phase": name}, seconds) for name, seconds in report.phases.items()]


def _failures(report: PodReport) -> list[Sample]:
    return [({"reason": report.failure.reason}, 1.0)] if report.failure else []


def _family(name: str, kind: str, text: str, samples: Iterable[Sample]) -> str:
    full = f"hotstart_agent_{name}"
    lines = [f"# HELP {full} {text}", f"# TYPE {full} {kind}"]
    for labels, value in samples:
        inside = ",".join(f'{key}="{label}"' for key, label in labels.items())
        lines.append(f"{full}{{{inside}}} {value:g}" if inside else f"{full} {value:g}")
    return "\n".join(lines)
