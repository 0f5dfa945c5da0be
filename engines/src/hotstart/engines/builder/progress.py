"""How far a build is, in percent, and when it will be done. Pure: bytes and weights done in, numbers out.

Each phase has a usual speed; together with the sizes they say how the percents are shared out. What is left of the
running phase is judged by its own speed, what comes after by how much slower than usual this machine has been.
"""

from __future__ import annotations

from dataclasses import dataclass

from hotstart.exchange.messages import BuildPhase

#: Usual seconds for each MiB of the checkpoint, on two cores and a store in the same network (measured: 135 M weights).
USUAL_SECONDS_PER_MIB: dict[BuildPhase, float] = {
    BuildPhase.DOWNLOADING: 0.010,
    BuildPhase.CONVERTING: 0.040,
    BuildPhase.BUILDING: 0.0,
    BuildPhase.VERIFYING: 0.035,
    BuildPhase.CALIBRATING: 0.0,
    BuildPhase.UPLOADING: 0.015,
}
#: Usual seconds whatever the size: calibration has a budget of time.
FIXED_SECONDS: dict[BuildPhase, float] = {BuildPhase.CALIBRATING: 20.0}
ORDER = tuple(USUAL_SECONDS_PER_MIB)
LEAST_SHARE_FOR_SPEED = 0.02  # below it a phase's own speed says nothing
MIB = 1024 * 1024


@dataclass(frozen=True)
class Position:
    """Where a build stands: ``share`` of the running phase that is done, 0 to 1; times in seconds."""

    phase: BuildPhase
    share: float
    checkpoint_bytes: int
    phase_began: float
    began: float
    building_seconds: float = 0.0  # usual for the build step; 0 where the conversion is the engine


@dataclass(frozen=True)
class Outlook:
    """``percent`` of the whole build; ``eta_seconds`` until its end, None while nothing is known."""

    percent: int
    eta_seconds: float | None


def decide_outlook(position: Position, now: float) -> Outlook:
    """Percent and time left. The percent never reaches 100 before everything is uploaded."""
    if position.phase in (BuildPhase.STARTING, BuildPhase.FAILED) or position.checkpoint_bytes <= 0:
        return Outlook(0, None)
    if position.phase is BuildPhase.UPLOADED:
        return Outlook(100, 0.0)
    usual = usual_seconds(position.checkpoint_bytes, position.building_seconds)
    at = ORDER.index(position.phase)
    share = min(max(position.share, 0.0), 1.0)
    done = sum(usual[:at]) + share * usual[at]
    percent = min(int(100 * done / sum(usual)), 99)
    return Outlook(percent, _seconds_left(position, usual, at, share, now))


def usual_seconds(size: int, building_seconds: float = 0.0) -> list[float]:
    """What each phase usually takes for a checkpoint of so many bytes, in order."""
    fixed = FIXED_SECONDS | {BuildPhase.BUILDING: building_seconds}
    return [USUAL_SECONDS_PER_MIB[phase] * size / MIB + fixed.get(phase, 0.0) for phase in ORDER]


def _seconds_left(position: Position, usual: list[float], at: int, share: float, now: float) -> float | None:
    done = sum(usual[:at]) + share * usual[at]
    if share < LEAST_SHARE_FOR_SPEED and at == 0:
        return None
    slowness = (now - position.began) / done if done > 0 else 1.0
    fixed = sum(FIXED_SECONDS.get(phase, 0.0) for phase in ORDER[at + 1 :])
    if share >= LEAST_SHARE_FOR_SPEED:
        running = max(now - position.phase_began, 0.0) * (1 - share) / share
    else:
        running = usual[at] * (1.0 if position.phase in FIXED_SECONDS else slowness)
    return round(running + (sum(usual[at + 1 :]) - fixed) * slowness + fixed, 1)
