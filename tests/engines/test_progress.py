"""Percent and time left: within bounds and never backwards, whatever the machine does."""

from __future__ import annotations

from hotstart.engines.builder.progress import FIXED_SECONDS, MIB, ORDER, Position, decide_outlook, usual_seconds
from hotstart.exchange.messages import BuildPhase
from hypothesis import given
from hypothesis import strategies as st

SIZE = 100 * MIB
shares = st.floats(0, 1)


def position(phase: BuildPhase, share: float, *, phase_began: float = 0.0, size: int = SIZE) -> Position:
    return Position(phase, share, size, phase_began, 0.0)


@given(st.lists(st.tuples(st.sampled_from(ORDER), shares), min_size=2), st.floats(0, 1e6), st.integers(1, 10**13))
def test_percent_never_falls_and_is_100_only_at_the_end(
    steps: list[tuple[BuildPhase, float]], now: float, size: int
) -> None:
    ordered = sorted(steps, key=lambda step: (ORDER.index(step[0]), step[1]))
    percents = [decide_outlook(position(phase, share, size=size), now).percent for phase, share in ordered]
    assert percents == sorted(percents)
    assert all(0 <= percent <= 99 for percent in percents)
    assert decide_outlook(position(BuildPhase.UPLOADED, 1.0, size=size), now).percent == 100


@given(st.sampled_from(ORDER), st.floats(-1, 2), st.floats(0, 1e6), st.floats(0, 1e6))
def test_time_left_is_never_negative(phase: BuildPhase, share: float, phase_began: float, now: float) -> None:
    eta = decide_outlook(position(phase, share, phase_began=phase_began), now).eta_seconds
    assert eta is None or eta >= 0


def test_nothing_is_known_before_the_checkpoint_is() -> None:
    for phase in (BuildPhase.STARTING, BuildPhase.FAILED):
        assert decide_outlook(position(phase, 0.5), 10.0) == decide_outlook(
            position(BuildPhase.DOWNLOADING, 0, size=0), 9
        )
    assert decide_outlook(position(BuildPhase.DOWNLOADING, 0.0), 10.0).eta_seconds is None
    assert decide_outlook(position(BuildPhase.UPLOADED, 1.0), 10.0).eta_seconds == 0.0


def test_a_machine_of_the_usual_speed_is_foreseen_rightly() -> None:
    usual = usual_seconds(SIZE)
    for at, phase in enumerate(ORDER):
        began = sum(usual[:at])
        now = began + 0.5 * usual[at]
        eta = decide_outlook(position(phase, 0.5, phase_began=began), now).eta_seconds
        assert eta is not None
        assert abs(eta - (sum(usual) - now)) < 0.2


def test_a_machine_half_as_fast_takes_twice_as_long() -> None:
    usual = usual_seconds(SIZE)
    now = 2 * (usual[0] + 0.5 * usual[1])
    eta = decide_outlook(position(ORDER[1], 0.5, phase_began=2 * usual[0]), now).eta_seconds
    assert eta is not None
    assert abs(eta - (2 * sum(usual) - sum(FIXED_SECONDS.values()) - now)) < 0.2  # a budget of time stays one
