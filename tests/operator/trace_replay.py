"""A recorded hour of traffic against the scaling decision, with a clock of its own: no threads, no sleeps.

The fleet is as simple as it can be and still queue: each replica works on so many requests at once, each takes a time
that its tokens say, what finds no free place waits in line. Every second the window that routers would report goes to
the very function that the operator calls.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from hotstart.exchange.messages import LATENCY_EDGES_MS, ModelSecond
from hotstart.operator.api import CompletionModelSpec, Reason
from hotstart.operator.core.scale import Fleet, ScaleState, decide_scale
from hotstart.operator.core.window import Window, add_seconds

EPOCH = 1_800_000_000
START_SECONDS = 4  # from the decision until a new replica serves


@dataclass(frozen=True)
class Arrival:
    """One request: seconds from the trace's begin, tokens of the prompt and of the answer."""

    at: float
    context: int
    generated: int

    @property
    def service(self) -> float:
        """Seconds in a replica: prefill of 60,000 tokens/s, 5 ms a token of an answer that ends at 32."""
        return min(self.context, 3840) / 60_000 + 0.005 * min(self.generated, 32)


@dataclass
class Outcome:
    """What came of a replay. ``replicas`` has the number at each second."""

    latencies: list[float] = field(default_factory=list)
    replicas: list[int] = field(default_factory=list)
    reasons: Counter[Reason] = field(default_factory=Counter)

    def share_within(self, seconds: float) -> float:
        """Of all requests, those that took no longer."""
        return sum(latency <= seconds for latency in self.latencies) / len(self.latencies)


@dataclass
class Replicas:
    """The fleet: ``each`` requests at once a replica. ``running``: when each request in work ends, and when it came."""

    each: int
    ready: int
    coming: deque[int] = field(default_factory=deque)  # the seconds at which new ones serve
    running: list[tuple[float, float]] = field(default_factory=list)
    waiting: deque[Arrival] = field(default_factory=deque)

    def begin(self, now: float) -> None:
        """Takes from the line what there is room for."""
        while self.waiting and len(self.running) < self.ready * self.each:
            arrival = self.waiting.popleft()
            heapq.heappush(self.running, (now + arrival.service, arrival.at))

    def run_second(self, second: int, arrivals: Sequence[Arrival], outcome: Outcome, slo: float) -> ModelSecond:
        """One second of its life, as a router reports it."""
        end, now, busy, queued = second + 1.0, float(second), 0.0, 0.0
        pending, latencies = deque(arrivals), []
        self.begin(now)
        while now < end:
            following = min(self.running[0][0] if self.running else end, pending[0].at if pending else end, end)
            busy, queued = busy + len(self.running) * (following - now), queued + len(self.waiting) * (following - now)
            now = following
            while self.running and self.running[0][0] <= now and now < end:
                latencies.append(now - heapq.heappop(self.running)[1])
            while pending and pending[0].at <= now:
                self.waiting.append(pending.popleft())
            self.begin(now)
        outcome.latencies += latencies
        return ModelSecond(
            second=EPOCH + second,
            model="team/m",
            arrivals=len(arrivals),
            completed=len(latencies),
            in_flight_sum=busy,
            queued_sum=queued,
            within_slo=sum(latency <= slo for latency in latencies),
            latency_buckets=make_buckets(latencies),
        )

    def scale(self, wanted: int, second: int) -> None:
        """New ones are on their way; those that go are taken from the newest."""
        while self.ready + len(self.coming) < wanted:
            self.coming.append(second + START_SECONDS)
        while self.ready + len(self.coming) > wanted:
            if self.coming:
                self.coming.pop()
            else:
                self.ready -= 1

    def admit(self, second: int) -> None:
        """Those that serve from this second on."""
        while self.coming and self.coming[0] <= second:
            self.coming.popleft()
            self.ready += 1


def make_buckets(latencies: Sequence[float]) -> tuple[int, ...]:
    """Counts by ``LATENCY_EDGES_MS``."""
    if not latencies:
        return ()
    found = [0] * (len(LATENCY_EDGES_MS) + 1)
    for latency in latencies:
        found[next((i for i, edge in enumerate(LATENCY_EDGES_MS) if latency * 1000 <= edge), len(found) - 1)] += 1
    return tuple(found)


def replay(arrivals: Sequence[Arrival], spec: CompletionModelSpec, seconds: int) -> Outcome:
    """The whole of it, with the replicas that the decisions ask for."""
    each = spec.scaling.concurrency_per_replica or 1
    fleet, outcome = Replicas(each, spec.scaling.min_replicas), Outcome()
    window, state, current = Window(), ScaleState(), spec.scaling.min_replicas
    by_second: dict[int, list[Arrival]] = {}
    for arrival in arrivals:
        by_second.setdefault(int(arrival.at), []).append(arrival)
    for second in range(seconds):
        fleet.admit(second)
        slo = spec.slo.latency.milliseconds / 1000
        report = fleet.run_second(second, by_second.get(second, ()), outcome, slo)
        now = EPOCH + second + 1.0
        window = add_seconds(window, [report], now)
        seen = Fleet(current=current, ready=fleet.ready, coming=len(fleet.coming))
        decision, state = decide_scale(window, state, spec, seen, now)
        current = decision.replicas
        fleet.scale(current, second)
        outcome.replicas.append(current)
        outcome.reasons[decision.reason] += 1
    return outcome
