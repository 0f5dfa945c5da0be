"""Traffic, and nothing else, changes the number of replicas: up while people ask, back down when they are gone."""

from __future__ import annotations

import pytest

from tests.e2e.load import Clients

pytestmark = pytest.mark.e2e

UP_TO_TWO = "SLO, minReplicas: 1, maxReplicas: 2, concurrencyPerReplica: 1"
TOKENS = 32  # so long that requests are in work for more of the time than their clients take between two


def steps(tenant) -> list[tuple[int, int]]:
    """From and to of the decisions in status, oldest first."""
    found = tenant.model()["status"].get("decisions", ())
    return [(decision["from"], decision["to"]) for decision in reversed(found)]


def test_people_who_ask_without_pause_get_a_second_replica_and_its_end_takes_it_away(settled) -> None:
    settled.apply_model(mode=UP_TO_TWO, maxNewTokens=str(TOKENS))
    settled.wait_ready()
    assert steps(settled) == []

    with Clients(settled, 4, max_tokens=TOKENS) as clients:
        settled.wait_ready(replicas=2)
        served = len(clients.answers)
        settled.wait(lambda: len(clients.answers) >= served + 20, "answers by two replicas")
    assert clients.failures == []
    assert steps(settled) == [(1, 2)]
    assert settled.model()["spec"]["replicas"] == 2

    settled.wait(
        lambda: settled.model()["spec"]["replicas"] == 1 and len(settled.pods()) == 1,
        "one replica is left",
        patience=180,
    )
    settled.wait(lambda: steps(settled) == [(1, 2), (2, 1)], "status tells of both decisions")
    reasons = {event["reason"] for event in settled.kube.items("events", settled.namespace)}
    assert {"DemandRose", "DemandFell"} <= reasons
    settled.wait_ready()
