"""The scaling decision: window + state + spec + now -> decision with a reason, and the next state. Pure.

Demand is work: requests at pods and in the queue, as integrals over seconds, against what one replica does at once
within the SLO (`core.capacity`). A short window finds the burst, a long one the trend. Latency is the trim and not the
signal: it is flat until saturation and then too late. Up at once and as far as needed; down slowly, one step at a time;
no data is Hold, never zero.
The same function replays traces in tests and simulations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC

from hotstart.operator.api import CompletionModelSpec, Reason
from hotstart.operator.api.scaling import ScalingMode
from hotstart.operator.core.capacity import Capacity, decide_capacity
from hotstart.operator.core.window import Window, measure_latency

BURST_SECONDS = 6
BURST_PEAKS = 2  # mean of so many busiest seconds of the burst window: one lone second is not yet a burst
TREND_SECONDS = 60
LATENCY_SECONDS = 30
LATENCY_SAMPLES = 20
TARGET_UTILISATION = 0.8  # of a replica's capacity; the rest takes what arrives within a second
TRIM_UTILISATION = 0.6  # below it, slow completions are not for want of replicas
STEP_DOWN_SECONDS = 5.0
TRIM_SECONDS = 15.0  # between two trims: the last one must have had its effect
SLOTS = 30  # the stabilization window is kept as so many maxima


@dataclass(frozen=True)
class ScaleState:
    """What a decision remembers. ``wants`` is the most replicas wanted, by slot of the stabilization window."""

    since: float | None = None  # when this memory began
    wants: Mapping[int, int] = field(default_factory=dict)
    stepped_down: float = 0.0
    trimmed: float = 0.0


@dataclass(frozen=True)
class Fleet:
    """The replicas: ``current`` is spec.replicas; ``ready`` serve; ``coming`` are on their way.

    ``silent_routers`` stand and have not reported lately: what they send to the replicas is not known.
    """

    current: int
    ready: int
    coming: int
    rolling_out: bool = False
    silent_routers: int = 0


@dataclass(frozen=True)
class ScaleDecision:
    """How many replicas, and why. ``inputs`` are figures by name, as text with units."""

    replicas: int
    reason: Reason
    message: str
    inputs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Demand:
    """Requests in work and waiting, as means over seconds (requests)."""

    burst: float
    trend: float
    queued: float
    p95: float | None
    samples: int
    missed: bool  # more requests took longer than the SLO than its percentile allows

    @property
    def peak(self) -> float:
        """What capacity is measured against."""
        return max(self.burst, self.trend)


def measure_demand(window: Window, percentile: int, now: float) -> Demand:
    """Demand and latency of the windows that end at ``now``."""
    short = window.last(BURST_SECONDS, now)
    peaks = sorted((second.in_flight + second.queued for second in short), reverse=True)[:BURST_PEAKS]
    long = window.last(TREND_SECONDS, now)
    latency = measure_latency(window.last(LATENCY_SECONDS, now), percentile)
    return Demand(
        burst=sum(peaks) / BURST_PEAKS,
        trend=sum(second.in_flight + second.queued for second in long) / TREND_SECONDS,
        queued=sum(second.queued for second in short) / BURST_SECONDS,
        p95=latency.value,
        samples=latency.samples,
        missed=latency.misses(percentile),
    )


@dataclass(frozen=True)
class ScaleView:
    """All that a policy looks at. ``wanted`` is what demand asks for, within the bounds."""

    spec: CompletionModelSpec
    capacity: Capacity
    fleet: Fleet
    demand: Demand
    fresh: bool
    wanted: int
    state: ScaleState
    now: float

    @property
    def low(self) -> int:
        """Lower bound (pods)."""
        return self.spec.scaling.min_replicas

    @property
    def high(self) -> int:
        """Upper bound (pods)."""
        return self.spec.scaling.max_replicas

    @property
    def utilisation(self) -> float:
        """Demand over what the ready replicas hold."""
        return self.demand.peak / max(1, self.fleet.ready * self.capacity.work)

    def decide(self, replicas: int, reason: Reason, message: str) -> ScaleDecision:
        """A decision with the inputs of this view."""
        demand = self.demand
        inputs = {
            "burst": f"{demand.burst:.2f} requests",
            "trend": f"{demand.trend:.2f} requests",
            "queued": f"{demand.queued:.2f} requests",
            "concurrencyPerReplica": self.capacity.describe(),
            "ready": f"{self.fleet.ready} pods",
            "coming": f"{self.fleet.coming} pods",
        }
        if demand.p95 is not None:
            inputs[f"p{self.spec.slo.percentile}"] = f"{demand.p95:.0f} ms"
        return ScaleDecision(replicas, reason, message, inputs)


def override_active(view: ScaleView) -> ScaleDecision | None:
    """On-call's number wins until its time."""
    override = view.spec.scaling.override
    if override is None or view.now >= override.until.timestamp():
        return None
    until = override.until.astimezone(UTC)
    text = f"On-call holds {override.replicas} replicas until {until:%Y-%m-%d %H:%M:%S} UTC: {override.reason}"
    return view.decide(override.replicas, Reason.OVERRIDE_ACTIVE, text)


def below_minimum(view: ScaleView) -> ScaleDecision | None:
    """Fewer than the lower bound."""
    if view.fleet.current >= view.low:
        return None
    return view.decide(view.low, Reason.AT_MINIMUM, f"minReplicas is {view.low}.")


def above_maximum(view: ScaleView) -> ScaleDecision | None:
    """More than the upper bound."""
    if view.fleet.current <= view.high:
        return None
    return view.decide(view.high, Reason.AT_MAXIMUM, f"maxReplicas is {view.high}.")


def no_data(view: ScaleView) -> ScaleDecision | None:
    """Silence is no reason to do anything."""
    if view.fresh:
        return None
    return view.decide(view.fleet.current, Reason.HOLD_NO_DATA, "No router has reported lately: the number stays.")


def demand_above(view: ScaleView) -> ScaleDecision | None:
    """Up at once, as far as demand asks."""
    if view.wanted <= view.fleet.current:
        return None
    demand, each = view.demand, view.capacity.work
    reason = Reason.REQUESTS_WAITING if demand.queued > view.fleet.ready * each else Reason.DEMAND_ROSE
    message = (
        f"{demand.peak:.1f} requests in work or waiting, {each:g} to a replica at {TARGET_UTILISATION:.0%}: "
        f"{view.wanted} replicas."
    )
    if view.wanted == view.high:
        message = f"{message[:-1]}, the maximum."
    return view.decide(view.wanted, reason, message)


def router_silent(view: ScaleView) -> ScaleDecision | None:
    """What a silent router sends is missing from demand and latency alike: they are lower bounds."""
    silent = view.fleet.silent_routers
    if not silent:
        return None
    who = "A router has" if silent == 1 else f"{silent} routers have"
    text = f"{who} not reported lately: replicas are added where the others ask for them, and none is taken away."
    return view.decide(view.fleet.current, Reason.HOLD_ROUTER_SILENT, text)


def latency_above(view: ScaleView) -> ScaleDecision | None:
    """One replica more where the percentile breaks the SLO, enough samples say so, and the replicas are busy.

    Not where a lone request already takes longer than the SLO: no number of replicas makes it faster.
    """
    demand, slo = view.demand, view.spec.slo.latency.milliseconds
    if view.capacity.lone_misses:
        return None
    enough = demand.samples >= LATENCY_SAMPLES and view.utilisation >= TRIM_UTILISATION
    if demand.p95 is None or not demand.missed or not enough or view.fleet.current >= view.high:
        return None
    if view.fleet.coming > 0 or view.now - view.state.trimmed < TRIM_SECONDS:
        return None
    message = f"P{view.spec.slo.percentile} is {demand.p95:.0f} ms, the SLO {slo} ms: one replica more."
    return view.decide(view.fleet.current + 1, Reason.LATENCY_ABOVE_SLO, message)


def demand_below(view: ScaleView) -> ScaleDecision | None:
    """Down by one step, once nothing in the stabilization window wanted as many."""
    fleet, state = view.fleet, view.state
    if view.wanted >= fleet.current:
        return None
    if fleet.rolling_out:
        return view.decide(fleet.current, Reason.HOLD_ROLLING_OUT, "Fewer replicas would do; a rollout runs first.")
    window = view.spec.scaling.scale_down_stabilization.seconds
    begun = state.since is not None and view.now - state.since >= window
    most = max(state.wants.values(), default=fleet.current)
    stepped = view.now - state.stepped_down >= min(STEP_DOWN_SECONDS, max(1.0, window))
    if not begun or most >= fleet.current or not stepped:
        message = f"{view.wanted} replicas would do; demand must be lower for {window:.0f} s first."
        return view.decide(fleet.current, Reason.HOLD_STABILIZING, message)
    message = f"Demand asked for no more than {most} replicas for {window:.0f} s: one replica fewer."
    return view.decide(fleet.current - 1, Reason.DEMAND_FELL, message)


def at_target(view: ScaleView) -> ScaleDecision | None:
    """Nothing to do; at the maximum under more load, that is said."""
    unbounded = unbounded_want(view.demand, view.capacity)
    if view.fleet.current == view.high and unbounded > view.high:
        message = f"Demand asks for {unbounded} replicas; maxReplicas is {view.high}."
        return view.decide(view.fleet.current, Reason.AT_MAXIMUM, message)
    return view.decide(view.fleet.current, Reason.HOLD_AT_TARGET, "The replicas fit the demand.")


POLICIES: tuple[Callable[[ScaleView], ScaleDecision | None], ...] = (
    override_active,
    below_minimum,
    above_maximum,
    no_data,
    demand_above,
    router_silent,
    latency_above,
    demand_below,
    at_target,
)


def unbounded_want(demand: Demand, capacity: Capacity) -> int:
    """Replicas for that demand, bounds aside."""
    each = capacity.work * TARGET_UTILISATION
    if demand.peak < 0.01:
        return 0
    return max(1, math.ceil(round(demand.peak / each, 6)))


def decide_scale(
    window: Window,
    state: ScaleState,
    spec: CompletionModelSpec,
    fleet: Fleet,
    now: float,
    capacity: Capacity | None = None,
) -> tuple[ScaleDecision, ScaleState]:
    """The decision of the first policy that applies, and what to remember. ``capacity`` None: nothing is calibrated.

    In mode External the decision is advice only; the caller writes nothing.
    """
    capacity = decide_capacity(spec, None) if capacity is None else capacity
    demand = measure_demand(window, spec.slo.percentile, now)
    scaling, fresh = spec.scaling, window.is_fresh(now)
    wanted = min(scaling.max_replicas, max(scaling.min_replicas, unbounded_want(demand, capacity)))
    whole = fresh and not fleet.silent_routers  # only then is low demand known to be low
    since = (state.since if state.since is not None else now) if whole else None
    wants = remember(state.wants, wanted, scaling.scale_down_stabilization.seconds, now) if fresh else {}
    state = replace(state, since=since, wants=wants)
    view = ScaleView(spec, capacity, fleet, demand, fresh, wanted, state, now)
    decision = next(found for policy in POLICIES if (found := policy(view)) is not None)
    if decision.reason is Reason.DEMAND_FELL:
        state = replace(state, stepped_down=now)
    if decision.reason is Reason.LATENCY_ABOVE_SLO:
        # The trim is remembered as wanted, so that it is not taken back before the stabilization window has passed.
        kept = remember(wants, decision.replicas, scaling.scale_down_stabilization.seconds, now)
        state = replace(state, trimmed=now, wants=kept)
    return decision, state


def remember(wants: Mapping[int, int], wanted: int, window: float, now: float) -> dict[int, int]:
    """The maxima by slot of the stabilization window, with ``wanted`` at ``now``."""
    width = max(1.0, window / SLOTS)
    slot, oldest = int(now / width), int((now - window) / width)
    kept = {number: most for number, most in wants.items() if oldest <= number <= slot}
    kept[slot] = max(wanted, kept.get(slot, 0))
    return kept


def is_external(spec: CompletionModelSpec) -> bool:
    """Whether somebody else writes spec.replicas."""
    return spec.scaling.mode is ScalingMode.EXTERNAL
