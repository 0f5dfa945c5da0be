"""The scaling decision: tables, properties, and a replay of traffic with a fake clock."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left

from hotstart.exchange.messages import LATENCY_EDGES_MS, ModelSecond
from hotstart.operator.api import CompletionModel, CompletionModelSpec, Reason
from hotstart.operator.api.model_spec import Slo
from hotstart.operator.core.scale import Fleet, ScaleState, decide_scale
from hotstart.operator.core.verdicts import judge_slo
from hotstart.operator.core.window import Window, add_seconds, measure_latency
from hypothesis import given
from hypothesis import strategies as st

NOW = 1_800_000_000.0


def make_spec(**scaling) -> CompletionModelSpec:
    wanted = {"mode": "SLO", "minReplicas": 1, "maxReplicas": 10, "scaleDownStabilization": "30s", **scaling}
    return CompletionModelSpec.model_validate(
        {
            "checkpoint": {"uri": "s3://models/tiny/"},
            "engine": {"runtime": "ctranslate2"},
            "slo": {"latency": "250ms"},
            "scaling": wanted,
        }
    )


def buckets(milliseconds: float, count: int) -> tuple[int, ...]:
    found = [0] * (len(LATENCY_EDGES_MS) + 1)
    found[bisect_left(LATENCY_EDGES_MS, milliseconds)] = count
    return tuple(found)


def traffic(second: int, busy: float, queued: float = 0.0, *, ms: float = 100.0, completed: int = 5) -> ModelSecond:
    return ModelSecond(
        second=second,
        model="team/m",
        arrivals=completed,
        completed=completed,
        in_flight_sum=busy,
        queued_sum=queued,
        within_slo=completed if ms <= 250 else 0,
        latency_buckets=buckets(ms, completed) if completed else (),
    )


def steady(busy: float, queued: float = 0.0, *, ms: float = 100.0, seconds: int = 60, now: float = NOW) -> Window:
    start = int(now) - seconds
    return add_seconds(Window(), [traffic(start + i, busy, queued, ms=ms) for i in range(seconds)], now)


def decide(window, fleet, spec=None, state=None, now=NOW):
    return decide_scale(window, state or ScaleState(), spec or make_spec(), fleet, now)[0]


def test_up_at_once_as_far_as_needed():
    decision = decide(steady(4.0, 4.0), Fleet(current=1, ready=1, coming=0))
    assert (decision.replicas, decision.reason) == (10, Reason.REQUESTS_WAITING)
    decision = decide(steady(1.6), Fleet(current=1, ready=1, coming=0))
    assert (decision.replicas, decision.reason) == (2, Reason.DEMAND_ROSE)


def test_pods_on_their_way_are_not_asked_for_twice():
    decision = decide(steady(1.0, 0.5), Fleet(current=2, ready=1, coming=1))
    assert decision.replicas == 2


def test_silence_is_hold_and_never_zero():
    decision = decide(Window(), Fleet(current=4, ready=4, coming=0))
    assert (decision.replicas, decision.reason) == (4, Reason.HOLD_NO_DATA)
    decision = decide(steady(0.1), Fleet(current=4, ready=4, coming=0), now=NOW + 60)
    assert (decision.replicas, decision.reason) == (4, Reason.HOLD_NO_DATA)


def test_a_silent_router_holds_what_takes_away_and_what_trims_and_not_what_adds():
    spec = make_spec(scaleDownStabilization="0s")
    quiet, two = steady(0.1), Fleet(current=4, ready=4, coming=0, silent_routers=1)
    decision, state = decide_scale(quiet, ScaleState(), spec, two, NOW)
    assert (decision.replicas, decision.reason) == (4, Reason.HOLD_ROUTER_SILENT)
    assert state.since is None, "the time in which demand must be low has not begun"
    slow = decide(steady(0.75, ms=400.0), Fleet(current=1, ready=1, coming=0, silent_routers=1))
    assert (slow.replicas, slow.reason) == (1, Reason.HOLD_ROUTER_SILENT)
    more = decide(steady(4.0), Fleet(current=1, ready=1, coming=0, silent_routers=1))
    assert (more.replicas, more.reason) == (5, Reason.DEMAND_ROSE)


def test_a_lone_busy_second_is_no_burst():
    window = add_seconds(Window(), [traffic(int(NOW) - 3, 1.2)], NOW)
    assert decide(window, Fleet(current=1, ready=1, coming=0)).replicas == 1


def test_latency_trims_only_when_replicas_are_busy_and_samples_enough():
    busy = steady(0.75, ms=400.0)
    decision = decide(busy, Fleet(current=1, ready=1, coming=0))
    assert (decision.replicas, decision.reason) == (2, Reason.LATENCY_ABOVE_SLO)
    assert decide(steady(0.2, ms=400.0), Fleet(current=1, ready=1, coming=0)).replicas == 1
    assert decide(steady(0.75, ms=400.0, seconds=2), Fleet(current=1, ready=1, coming=0)).replicas == 1
    assert decide(busy, Fleet(current=1, ready=1, coming=1)).replicas == 1


def test_a_new_operator_takes_nothing_away_before_its_memory_is_long_enough():
    window = steady(0.1)
    decision = decide(window, Fleet(current=3, ready=3, coming=0))
    assert (decision.replicas, decision.reason) == (3, Reason.HOLD_STABILIZING)


def test_an_override_wins_until_its_time():
    override = {"replicas": 12, "until": "2027-01-15T08:10:00Z", "reason": "launch"}
    spec = make_spec(override=override)
    decision = decide(Window(), Fleet(current=1, ready=1, coming=0), spec)
    assert (decision.replicas, decision.reason) == (12, Reason.OVERRIDE_ACTIVE)
    assert "launch" in decision.message and "until 2027-01-15 08:10:00 UTC" in decision.message
    elsewhere = make_spec(override={**override, "until": "2027-01-15T17:10:00+09:00"})
    assert decide(Window(), Fleet(current=1, ready=1, coming=0), elsewhere).message == decision.message
    after = decide(Window(), Fleet(current=12, ready=12, coming=0), spec, now=NOW + 601)
    assert (after.replicas, after.reason) == (10, Reason.AT_MAXIMUM)


def test_a_rollout_takes_no_replica_away():
    spec = make_spec(scaleDownStabilization="0s")
    decision = decide(steady(0.1), Fleet(current=3, ready=3, coming=0, rolling_out=True), spec)
    assert decision.reason is Reason.HOLD_ROLLING_OUT


def test_down_by_single_steps_after_the_stabilization_window():
    spec, state, window, current, now = make_spec(), ScaleState(), steady(7.0), 1, NOW
    history = []
    for second in range(150):
        now = NOW + second
        if second > 0:
            window = add_seconds(window, [traffic(int(now) - 1, 7.0 if second < 20 else 0.1)], now)
        decision, state = decide_scale(window, state, spec, Fleet(current, current, 0), now)
        if decision.replicas != current:
            history.append((second, current, decision.replicas))
        current = decision.replicas
    assert history[0] == (0, 1, 9)
    downs = history[1:]
    assert downs and all(before - after == 1 for _, before, after in downs)
    assert downs[0][0] >= 20 + 30
    assert all(later[0] - earlier[0] >= 5 for earlier, later in itertools.pairwise(downs))


@given(
    busy=st.lists(st.floats(0, 200, allow_nan=False), min_size=1, max_size=60),
    low=st.integers(0, 5),
    extra=st.integers(0, 20),
    each=st.integers(1, 8),
    current=st.integers(0, 60),
    stabilization=st.integers(0, 120),
)
def test_bounds_hold_whatever_the_traffic(busy, low, extra, each, current, stabilization):
    high = max(1, low + extra)
    spec = make_spec(
        minReplicas=low, maxReplicas=high, scaleDownStabilization=f"{stabilization}s", concurrencyPerReplica=each
    )
    state, window = ScaleState(), Window()
    for second, load in enumerate(busy):
        now = NOW + second
        window = add_seconds(window, [traffic(int(now) - 1, load)], now)
        decision, state = decide_scale(window, state, spec, Fleet(current, current, 0), now)
        assert low <= decision.replicas <= high
        assert decision.message
        current = decision.replicas
        assert len(state.wants) <= 34


@given(busy=st.floats(0, 100, allow_nan=False))
def test_more_demand_never_asks_for_fewer(busy):
    spec = make_spec(maxReplicas=1000)
    fleet = Fleet(current=1, ready=1, coming=0)
    less = decide(steady(busy), fleet, spec).replicas
    more = decide(steady(busy + 1), fleet, spec).replicas
    assert more >= less
    assert less >= min(1000, math.floor(busy))


def test_a_spiky_replay_scales_up_in_the_second_of_the_burst_and_settles():
    """Bursts of 8 s every 90 s over a quiet floor: each burst is met at once, nothing oscillates within it."""
    spec, state, window, current = make_spec(scaleDownStabilization="20s"), ScaleState(), Window(), 1
    changes = []
    for second in range(360):
        now = NOW + second
        busy = 6.0 if second % 90 in range(30, 38) else 0.2
        window = add_seconds(window, [traffic(int(now) - 1, busy)], now)
        decision, state = decide_scale(window, state, spec, Fleet(current, current, 0), now)
        if decision.replicas != current:
            changes.append((second, current, decision.replicas))
        current = decision.replicas
    ups = [change for change in changes if change[2] > change[1]]
    for burst in (30, 120, 210, 300):
        assert any(burst <= second <= burst + 2 for second, _, _ in ups), (burst, changes)
    assert max(after for _, _, after in changes) == 8


def test_the_percentile_is_interpolated_and_late_cancels_count_as_slow():
    fast = traffic(int(NOW) - 2, 1, ms=100.0, completed=99)
    window = add_seconds(Window(), [fast], NOW)
    assert 90 < (measure_latency(window.last(10, NOW), 95).value or 0) < 112
    late = ModelSecond(second=int(NOW) - 1, model="team/m", cancelled_late=50)
    window = add_seconds(window, [late], NOW)
    found = measure_latency(window.last(10, NOW), 95)
    assert found.value == LATENCY_EDGES_MS[-1]
    assert found.violations == 50


def test_an_slo_beyond_the_last_bucket_is_judged_by_count():
    spec = make_spec().model_copy(update={"slo": Slo(latency="30s")})
    model = CompletionModel.model_construct(spec=spec)
    assert spec.slo.latency.milliseconds > LATENCY_EDGES_MS[-1]
    for within, missed in ((0, True), (4, True), (5, False)):  # of the 5 of each second
        seconds = [traffic(int(NOW) - 1 - i, 0.75, ms=math.inf) for i in range(30)]
        window = add_seconds(Window(), [second.model_copy(update={"within_slo": within}) for second in seconds], NOW)
        verdict = judge_slo(model, measure_latency(window.last(60, NOW), spec.slo.percentile))
        assert verdict.holds is not missed and f"{150 - 30 * within} of 150 requests" in verdict.message
        decision = decide(window, Fleet(current=1, ready=1, coming=0), spec)
        assert (decision.reason is Reason.LATENCY_ABOVE_SLO) is missed
