"""The scaling decision over an hour of public code-completion traffic, and over an hour made like it.

The recorded hour lies beside the repository, in ../shared/traces; where it is not, only the made one is replayed.
"""

from __future__ import annotations

import csv
import itertools
import random
from datetime import datetime
from pathlib import Path

import pytest
from hotstart.operator.api import CompletionModelSpec, Reason

from tests.operator.trace_replay import Arrival, replay

RECORDED = Path(__file__).resolve().parents[3] / "shared" / "traces" / "azure-llm-2023-code.csv"
HOUR = 3600
LOW, HIGH = 1, 12
STABILIZATION_SECONDS = 60


def make_spec(low: int = LOW, high: int = HIGH) -> CompletionModelSpec:
    return CompletionModelSpec.model_validate(
        {
            "checkpoint": {"uri": "s3://models/m/"},
            "engine": {"runtime": "ctranslate2"},
            "slo": {"latency": "250ms"},
            "scaling": {
                "mode": "SLO",
                "minReplicas": low,
                "maxReplicas": high,
                "concurrencyPerReplica": 1,
                "scaleDownStabilization": f"{STABILIZATION_SECONDS}s",
            },
        }
    )


def make_hour() -> tuple[Arrival, ...]:
    """Bursts with silence between: most seconds are empty, the busiest hold dozens."""
    chance = random.Random(11)
    arrivals, at = [], 0.0
    while at < HOUR - 60:
        at += chance.expovariate(1 / 12)
        for _ in range(min(60, int(chance.paretovariate(0.8)))):
            arrivals.append(Arrival(at + chance.random() * 3, chance.randrange(50, 7000), chance.randrange(5, 90)))
    return tuple(sorted(arrivals, key=lambda arrival: arrival.at))


def read_hour() -> tuple[Arrival, ...]:
    """The recorded one."""
    with RECORDED.open(newline="") as file:
        rows = [(datetime.fromisoformat(row["TIMESTAMP"][:26]), row) for row in csv.DictReader(file)]
    begin = rows[0][0]
    return tuple(
        Arrival((when - begin).total_seconds(), int(row["ContextTokens"]), int(row["GeneratedTokens"]))
        for when, row in rows
    )


@pytest.fixture(scope="module", params=["made", "recorded"])
def hour(request) -> tuple[Arrival, ...]:
    if request.param == "made":
        return make_hour()
    if not RECORDED.exists():
        pytest.skip(f"the recorded hour is not there: {RECORDED}")
    return read_hour()


def test_bursts_are_answered_and_paid_for_only_while_they_last(hour):
    scaled = replay(hour, make_spec(), HOUR + 60)
    fixed = replay(hour, make_spec(LOW, LOW), HOUR + 60)
    full = replay(hour, make_spec(HIGH, HIGH), HOUR + 60)
    assert len(scaled.latencies) == len(hour), "every request ends"
    assert min(scaled.replicas) == LOW, "it comes back down"
    assert LOW < max(scaled.replicas) <= HIGH
    assert scaled.reasons[Reason.HOLD_NO_DATA] == 0
    # What it costs against the fleet that is always as large as it may be, and what it wins against the smallest.
    assert sum(scaled.replicas) < 0.6 * sum(full.replicas)
    missed, missed_fixed, missed_full = (1 - run.share_within(0.25) for run in (scaled, fixed, full))
    assert missed - missed_full < 0.6 * (missed_fixed - missed_full)


def test_what_a_burst_brought_stays_for_the_stabilization_window(hour):
    """Up at once; down by one, and never sooner after a rise than the spec says."""
    replicas = replay(hour, make_spec(), HOUR).replicas
    steps = [after - before for before, after in itertools.pairwise(replicas)]
    rises = [second for second, step in enumerate(steps) if step > 0]
    falls = [second for second, step in enumerate(steps) if step < 0]
    assert rises
    assert falls
    assert {steps[second] for second in falls} == {-1}
    for second in falls:
        assert not [rise for rise in rises if second - STABILIZATION_SECONDS < rise <= second]


def test_a_replay_is_the_same_each_time(hour):
    assert replay(hour, make_spec(), 600) == replay(hour, make_spec(), 600)
