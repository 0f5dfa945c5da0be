"""The demo's load: what is believed of a run, and what is not."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hotstart.demo import figures, load, watch
from hotstart.demo.story import Changes, StepFailed, Story
from hotstart.loadtest.plan import make_constant_plan

from tests.demo.doubles import (
    BEGAN,
    FIRST_START,
    SECOND_START,
    FakeKube,
    decision,
    make_clock,
    make_model,
    make_result,
    play_load,
    scaled_model,
    written,
)


@pytest.fixture
def kube(monkeypatch) -> FakeKube:
    monkeypatch.setattr(watch, "POLL_SECONDS", 0)
    monkeypatch.setattr(load, "LOOK_SECONDS", 0)
    monkeypatch.setattr(load, "utc_now", make_clock())
    kube = FakeKube()
    kube.scale_after(2)  # for the load's SLO, and once under load
    return kube


def run(kube, monkeypatch, send=None, **changes) -> load.LoadRun:
    monkeypatch.setattr(load, "run_in_processes", send or play_load(**changes))
    return load.run(kube, load.make_plan(kube, "http://127.0.0.1:1", 5.0), FIRST_START["pod"], Story())


def test_the_slo_of_the_load_is_the_models(kube):
    assert load.make_plan(kube, "http://127.0.0.1:1", 5.0).slo_s == 1.5


def test_a_good_run_tells_of_the_second_pod(kube, monkeypatch):
    found = run(kube, monkeypatch)
    assert found.looks[0] == (0.0, 1)
    assert set(found.looks[1:]) == {(10.0, 2)}
    assert found.second == SECOND_START
    assert found.told_at == BEGAN + timedelta(seconds=65)


def test_a_void_run_is_no_run(kube, monkeypatch):
    with pytest.raises(StepFailed, match="void"):
        run(kube, monkeypatch, drift=0.02)


def test_failed_requests_are_told_with_their_reason(kube, monkeypatch):
    with pytest.raises(StepFailed, match=r"3 of 300 requests got no answer.*http_503.*no replica"):
        run(kube, monkeypatch, failed=3)


def test_no_second_replica_is_told_with_the_last_decision(kube, monkeypatch):
    async def send(plan, processes):
        kube.models = [written(make_model(decisions=[decision(1, 1, "HoldNoData")]), BEGAN)]
        return make_result(plan)

    with pytest.raises(StepFailed, match=r"did not scale up.*1 -> 1: HoldNoData"):
        run(kube, monkeypatch, send)


def test_a_start_of_the_first_pod_is_not_taken_for_the_second_ones(kube, monkeypatch):
    limits = []

    def stop_waiting(kube, wanted, what, *, limit, say):
        limits.append(what)
        assert not wanted(scaled_model(coldStart=FIRST_START))
        assert not wanted(scaled_model(coldStart=None))
        raise StepFailed(what)

    monkeypatch.setattr(load, "wait_for_model", stop_waiting)
    with pytest.raises(StepFailed, match="second pod"):
        run(kube, monkeypatch)


def test_the_p95_in_status_is_read_once_it_covers_the_loads_end(kube, monkeypatch):
    def later(kube, wanted, what, *, limit, say):
        while not wanted(model := kube.get("completionmodels")):
            pass
        return model

    async def send(plan, processes):
        result = make_result(plan)
        early = written(scaled_model(latency={"value": "990ms"}), BEGAN + timedelta(seconds=61))
        empty = written(scaled_model(latency={"value": None}), BEGAN + timedelta(seconds=64))
        kube.models = [early, early, early, empty, scaled_model()]
        return result

    monkeypatch.setattr(load, "wait_for_model", later)
    assert watch.latency(run(kube, monkeypatch, send).model) == "1390ms"


def test_the_client_is_compared_over_the_minute_of_the_status(kube, monkeypatch):
    """The status was written 65 s after the load began: what ended in its first 5 s is in no window of a minute."""
    found = figures.describe_load(run(kube, monkeypatch, second_at=4.0))
    assert found["p95_ms"] == 2000.0
    assert found["p95_last_minute_ms"] == 500.0


def test_what_one_replica_does_is_told_apart_from_what_two_do(kube, monkeypatch):
    """Slow are the first 2 s, the second pod serves after 10 s: that shows in what one replica did, not in all."""
    found = figures.describe_load(run(kube, monkeypatch, second_at=2.0))
    assert (found["p95_one_replica_ms"], found["p95_two_replicas_ms"], found["p95_ms"]) == (2000.0, 500.0, 500.0)
    assert found["scaled_to"] == 2


def test_what_one_replica_left_in_the_queue_is_none_of_the_two_replicas(kube, monkeypatch):
    """The second pod serves after 10 s, and answers stay slow for another 9 s."""
    found = figures.describe_load(run(kube, monkeypatch, second_at=19.0))
    assert found["p95_two_replicas_ms"] == 500.0


def test_a_second_replica_that_goes_again_is_not_counted_as_two(kube, monkeypatch):
    whole = run(kube, monkeypatch, second_at=40.0)
    gone = load.LoadRun(whole.result, ((0.0, 1), (10.0, 2), (30.0, 1)), whole.second, whole.model)
    assert figures.ready_before(gone, 25.0, 10.0) == [2]
    assert figures.ready_before(gone, 35.0, 10.0) == [2, 1]
    assert figures.ready_before(gone, 5.0, 10.0) == [0, 1]
    assert figures.describe_load(gone)["p95_one_replica_ms"] == 2000.0, "also of what was asked once it had gone"


def test_a_cluster_that_stops_answering_ends_the_load(kube, monkeypatch):
    ended = []

    async def send(plan, processes):
        try:
            await load.asyncio.Event().wait()
        finally:
            ended.append(True)

    seen = iter((make_model(),))  # for the plan

    def get(*what):
        if (model := next(seen, None)) is None:
            raise StepFailed("connection refused")
        return model

    monkeypatch.setattr(kube, "get", get)
    with pytest.raises(StepFailed, match="connection refused"):
        run(kube, monkeypatch, send)
    assert ended == [True]


def test_what_is_seen_is_said_once(capsys):
    kube = FakeKube()
    up = [decision(1, 2, "DemandRose")]
    kube.models = [make_model(), make_model(decisions=up, readyReplicas=2), make_model(decisions=up)]
    follower = load.Follower(kube, Changes(Story()))
    for _ in range(4):
        follower.look()
    assert [ready for _, ready in follower.looks] == [1, 2, 1, 1]
    lines = [line.split("s  ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "1 of 1 replicas ready, P95 in status -; nothing decided yet",
        "2 of 1 replicas ready, P95 in status -; 1 -> 2: DemandRose: so many requests.",
        "1 of 1 replicas ready, P95 in status -; 1 -> 2: DemandRose: so many requests.",
    ]


def test_a_model_that_is_gone_is_said(kube, monkeypatch):
    monkeypatch.setattr(kube, "get", lambda *what: None)
    with pytest.raises(StepFailed, match="demo/smollm2 is gone"):
        load.make_plan(kube, "http://127.0.0.1:1", 5.0)


def test_the_rate_is_more_than_one_replica_does_and_less_than_two():
    rate = load.decide_rate(0.25, 2.0)
    assert 8.0 < rate < 16.0


def test_a_wait_that_ends_says_for_what_and_what_stands_in_the_way(kube):
    waiting = {"type": "EngineReady", "status": "False", "reason": "NotFound", "message": "no checkpoint"}
    kube.models, kube.objects["engines"] = [make_model(conditions=[waiting])], []
    with pytest.raises(StepFailed, match=r"0 s: demo/smollm2 is Ready\. EngineReady: NotFound: no checkpoint"):
        watch.wait_for_model(kube, watch.is_ready, "is Ready", limit=0, say=Changes(Story()))


def test_a_plan_is_as_long_as_the_load():
    plan = make_constant_plan("http://127.0.0.1:1", "demo/smollm2", rate=5.0, duration=load.LOAD_SECONDS)
    assert len(plan.arrivals) == 300
