"""Which pod's start the status tells."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hotstart.exchange.messages import PodReport, PodState
from hotstart.operator.api.status import ColdStart
from hotstart.operator.core.cold_start import measure_cold_start
from hotstart.operator.core.facts import PodFacts, make_pod_facts

NOW = 1_800_000_000.0


def make_pod(name: str, *, decided: float, ready_at: float) -> PodFacts:
    report = PodReport(pod_uid="u", state=PodState.READY, phases={"fetch": 1.0})
    stamp = datetime.fromtimestamp(decided, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    meta = {"name": name, "namespace": "team", "uid": f"uid-{decided}", "creationTimestamp": stamp}
    facts = make_pod_facts({"metadata": meta, "spec": {}, "status": {}})
    return replace(facts, decided=decided, ready_at=ready_at, report=report)


@pytest.fixture
def measured() -> ColdStart:
    found = measure_cold_start([make_pod("m-1", decided=NOW, ready_at=NOW + 4)], None)
    assert found is not None
    assert (found.pod, found.total_milliseconds) == ("m-1", 4000)
    return found


def test_a_pod_is_measured_once_though_its_readiness_goes_and_comes_back(measured):
    assert measure_cold_start([make_pod("m-1", decided=NOW, ready_at=NOW + 60)], measured) == measured


def test_a_later_pod_of_the_same_name_is_measured_too(measured):
    again = measure_cold_start([make_pod("m-1", decided=NOW + 100, ready_at=NOW + 103)], measured)
    assert again is not None
    assert again.total_milliseconds == 3000
    assert again.measured_at == datetime.fromtimestamp(NOW + 103, UTC)


def test_a_pod_that_was_ready_before_takes_nothing_back(measured):
    assert measure_cold_start([make_pod("m-0", decided=NOW - 50, ready_at=NOW - 40)], measured) == measured
