"""One model at run time: its pods and its queue. Where admission's decisions become effects.

A request takes a slot of a pod (``acquire``) and the pod's last word gives it back (``release``). Whatever may free a
slot or change the pods calls ``pump``, which serves the queue and refuses what has waited too long. So where a pod is
free and requests wait, it has lost each of them before, and a newcomer may take it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass

from hotstart.exchange.messages import Endpoint, ModelRoute
from hotstart.router.admission import (
    Decision,
    LaneView,
    Phase,
    Reason,
    decide_admission,
    decide_waiting,
    phase_of,
    retry_after_seconds,
    wait_ends,
)
from hotstart.router.balance import decide_pod
from hotstart.router.counters import ModelCounters
from hotstart.router.pod import Pod
from hotstart.router.queue import WaitQueue
from hotstart.router.refusals import make_refusal
from hotstart.router.routes import diff_endpoints
from hotstart.router.statistics import ModelBook

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Waiter:
    """A request in the queue: it gets a pod or an error."""

    future: asyncio.Future[Pod]
    work: int
    excluded: Collection[str]


class Lane:
    """Args: ``wall`` gives seconds since the epoch, for the statistics."""

    def __init__(self, route: ModelRoute, wall: Callable[[], float]) -> None:
        self.route = route
        self.pods: dict[str, Pod] = {}
        self.retiring: set[Pod] = set()
        self.book = ModelBook(route.model, wall())
        self.counters = ModelCounters(route.slo_ms)
        self.in_flight = 0
        self._queue: WaitQueue[Waiter] = WaitQueue()
        self._wall = wall
        self._loop = asyncio.get_running_loop()
        self._phase_since = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._picks = 0
        self._closing: set[asyncio.Task[None]] = set()
        self._set_pods(route)

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def busy(self) -> bool:
        """Whether it still has connections to end."""
        return bool(self.pods or self.retiring or self._closing)

    # ------------------------------------------------------------------------------------------------ routes

    def apply(self, route: ModelRoute) -> None:
        """Takes a new route: pods that left finish what they have, requests that wait are looked at again."""
        before, self.route = self.route, route
        self._set_pods(route)
        if _phase(before) is not _phase(route):
            self._phase_since = self._loop.time()
        if before.slo_ms != route.slo_ms:
            self.counters.set_slo(route.slo_ms)
        self.pump()

    def remove(self) -> None:
        """The model is gone: requests that wait are refused, those that run finish."""
        reason = "the model was removed while the request waited"
        self.apply(self.route.model_copy(update={"endpoints": (), "coming": False, "unavailable_reason": reason}))

    async def close(self) -> None:
        """Ends all connections; what runs is lost."""
        if self._timer is not None:
            self._timer.cancel()
        pods = [*self.pods.values(), *self.retiring]
        self.pods, self.retiring = {}, set()
        await asyncio.gather(*(pod.close() for pod in pods), *self._closing)

    def _set_pods(self, route: ModelRoute) -> None:
        change = diff_endpoints({pod.pod: pod.address for pod in self.pods.values()}, route.endpoints)
        for name in change.removed:
            pod = self.pods.pop(name)
            pod.retiring = True
            self.retiring.add(pod)
            self._close_retired(pod)
        for endpoint in change.kept:
            self.pods[endpoint.pod].cap = endpoint.cap
        for endpoint in change.added:
            self.pods[endpoint.pod] = self._take_back(endpoint) or Pod(endpoint, self.pump)

    def _take_back(self, endpoint: Endpoint) -> Pod | None:
        """A pod that was out for a moment: the requests that it still has count against its cap."""
        for pod in self.retiring:
            if (pod.pod, pod.address) == (endpoint.pod, endpoint.address):
                self.retiring.discard(pod)
                pod.retiring, pod.cap = False, endpoint.cap
                return pod
        return None

    def _close_retired(self, pod: Pod) -> None:
        if pod.retiring and pod.requests == 0 and pod in self.retiring:
            self.retiring.discard(pod)
            task = self._loop.create_task(pod.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    # ------------------------------------------------------------------------------------------------- slots

    async def acquire(self, work: int, *, excluded: Collection[str] = (), again: bool = False) -> Pod:
        """A slot at a pod, at once or after waiting; give it back with ``release``.

        Args:
            work: the request's work in tokens.
            excluded: pods that have lost it already.
            again: it has been admitted before, so it waits before all others and no limit of length holds.

        Raises:
            Rejected: 429 or 503.
        """
        decision = self._admit(excluded, again=again)
        if decision.pod is not None:
            self.counters.waited.observe(0.0)
            return self._take(self.pods[decision.pod], work)
        if not decision.waits:
            raise self._refusal(decision.reason)
        waiter = Waiter(self._loop.create_future(), work, excluded)
        since = self._loop.time()
        ticket = self._queue.put(waiter, since, again=again)
        self._note_levels()
        self._set_timer()
        try:
            pod = await waiter.future
        except asyncio.CancelledError:
            if self._queue.drop(ticket) is None and waiter.future.done() and not waiter.future.cancelled():
                self._give_back_unseen(waiter)
            self._note_levels()
            raise
        self.counters.waited.observe(self._loop.time() - since)
        return pod

    def release(self, pod: Pod, work: int) -> None:
        """Gives a slot back."""
        pod.requests -= 1
        pod.work -= work
        self.in_flight -= 1
        self._close_retired(pod)
        self.pump()

    def other_pod(self, lost: Collection[str]) -> bool:
        """Whether a request that these pods have lost can go to another."""
        return any(name not in lost for name in self.pods)

    def _give_back_unseen(self, waiter: Waiter) -> None:
        """The client left in the same moment in which its request got a slot."""
        if waiter.future.exception() is None:
            self.release(waiter.future.result(), waiter.work)

    def _admit(self, excluded: Collection[str], *, again: bool) -> Decision:
        view = self._view(decide_pod(self.pods.values(), excluded))
        if not again:
            return decide_admission(view)
        if view.pod is not None:
            return Decision(Reason.SLOT_FREE, view.pod)
        now = self._loop.time()
        return decide_waiting(view, now, self._phase_since, now - 1e-9)

    def _take(self, pod: Pod, work: int) -> Pod:
        self._picks += 1
        pod.picked = self._picks
        pod.requests += 1
        pod.work += work
        self.in_flight += 1
        self._note_levels()
        return pod

    # ------------------------------------------------------------------------------------------------- queue

    def pump(self) -> None:
        """Gives free slots to the queue, refuses who waited too long, and looks again when the next one has."""
        while self._queue and self._serve_one():
            pass
        while (place := self._queue.longest_waiting()) is not None:
            decision = decide_waiting(self._view(None), place.since, self._phase_since, self._loop.time())
            if decision.waits:
                break
            self._queue.drop(place.ticket)
            if not place.item.future.done():
                place.item.future.set_exception(self._refusal(decision.reason))
        self._note_levels()
        self._set_timer()

    def _serve_one(self) -> bool:
        if decide_pod(self.pods.values()) is None:
            return False
        for place in self._queue.places():
            name = decide_pod(self.pods.values(), place.item.excluded)
            if name is None:
                continue
            self._queue.drop(place.ticket)
            if not place.item.future.done():
                place.item.future.set_result(self._take(self.pods[name], place.item.work))
            return True
        return False

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        place = self._queue.longest_waiting()
        if place is not None:
            ends = wait_ends(self._view(None), place.since, self._phase_since)
            self._timer = self._loop.call_at(max(ends, self._loop.time() + 0.001), self.pump)

    def _view(self, pod: str | None) -> LaneView:
        return LaneView(
            phase=_phase(self.route),
            pod=pod,
            answering=any(each.answering for each in self.pods.values()),
            queued=len(self._queue),
            queue_limit=self.route.queue_limit,
            queue_deadline=self.route.queue_deadline,
            hold=self.route.hold,
        )

    def _refusal(self, reason: Reason) -> Exception:
        self.book.advance(self._wall())
        fallback = self.route.hold if self.route.coming else self.route.queue_deadline
        retry_after = retry_after_seconds(len(self._queue), self.book.drained_per_second(), fallback)
        return make_refusal(reason, self.route, retry_after)

    def _note_levels(self) -> None:
        self.book.set_levels(self._wall(), in_flight=self.in_flight, queued=len(self._queue))


def _phase(route: ModelRoute) -> Phase:
    return phase_of(endpoints=len(route.endpoints), coming=route.coming)
