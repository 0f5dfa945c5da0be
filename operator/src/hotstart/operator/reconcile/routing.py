"""The routers' half of the exchange: routes out, statistics back, and who sends where by now."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from hotstart.exchange.messages import ModelRoute, RouterReport, RouterRequest
from hotstart.exchange.names import PORT_ROUTER_EXCHANGE
from hotstart.operator.api import CompletionModel, ConditionStatus, ConditionType
from hotstart.operator.core.conditions import find_condition
from hotstart.operator.core.facts import PodFacts, owner_of, seconds_of
from hotstart.operator.core.routes import bracket, make_route
from hotstart.operator.core.verdicts import RouterFacts
from hotstart.operator.core.window import add_seconds
from hotstart.operator.reconcile.memory import Memory
from hotstart.operator.reconcile.model import gather_capacity, gather_pods
from hotstart.operator.reconcile.observed import Key, Observed
from hotstart.operator.reconcile.ports import Agents, Clock
from hotstart.operator.reconcile.work_queue import WorkQueue
from pydantic import ValidationError

log = logging.getLogger(__name__)
ROUTER_SILENT_SECONDS = 5.0


@dataclass(frozen=True)
class RouterPod:
    """One router: address of its exchange and UID of its pod."""

    uid: str
    address: str


@dataclass
class RouterState:
    """What is known of one router."""

    cursor: int = 0
    generation: int = -1  # newest generation of routes that it holds
    heard: float | None = None


@dataclass
class RouteBook:
    """The routes as routers shall have them; ``generation`` grows with each change."""

    generation: int = 0
    routes: tuple[ModelRoute, ...] = ()
    changed_in: dict[str, int] = field(default_factory=dict)  # by model: generation of its last change
    left_in: dict[str, int] = field(default_factory=dict)  # by pod UID: generation that no longer has it


@dataclass
class Routing:
    """One a process. ``routers`` are those that stand; the caller keeps them up to date."""

    agents: Agents
    clock: Clock
    observed: Observed
    memory: Memory
    queue: WorkQueue
    routers: tuple[RouterPod, ...] = ()
    _states: dict[str, RouterState] = field(default_factory=dict)
    _book: RouteBook = field(default_factory=RouteBook)

    def lags(self, router: RouterPod) -> bool:
        """Whether the router lacks the newest routes."""
        state = self._states.get(router.uid)
        return state is None or state.generation < self._book.generation

    def make_routes(self, serving: Iterable[dict[str, Any]]) -> None:
        """The routes from what is known now; a change is a new generation."""
        now = self.clock.now()
        by_model: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for pod in serving:
            by_model.setdefault((pod["metadata"]["namespace"], owner_of(pod, "CompletionModel")), []).append(pod)
        routes: list[ModelRoute] = []
        for raw in self.observed.all("CompletionModel"):
            if raw["metadata"].get("deletionTimestamp"):
                continue
            place = (raw["metadata"]["namespace"], raw["metadata"]["name"])
            facts = gather_pods(by_model.get(place, ()), self.memory.reports)
            try:
                model = CompletionModel.from_api(raw)
            except ValidationError:  # its own reconcile says so
                routes.extend(self._keep_route(*place, facts))
                continue
            created = int(seconds_of(model.metadata.creation_timestamp) or 0)
            cap, routers = gather_capacity(self.observed, model).cap, len(self.routers)
            routes.append(
                make_route(model, facts, cap=cap, routers=routers, created=created, reason=why_not(model), now=now)
            )
        self._publish_routes(tuple(routes), serving)

    def _keep_route(self, namespace: str, name: str, pods: Iterable[PodFacts]) -> Iterator[ModelRoute]:
        """The last route of a model that cannot be read any longer, to those of its pods that stand."""
        standing = {pod.name for pod in pods if not pod.deleting}
        for route in self._book.routes:
            if route.model == f"{namespace}/{name}":
                endpoints = tuple(endpoint for endpoint in route.endpoints if endpoint.pod in standing)
                yield route.model_copy(update={"endpoints": endpoints})

    def _publish_routes(self, routes: tuple[ModelRoute, ...], serving: Iterable[dict[str, Any]]) -> None:
        book = self._book
        if routes != book.routes or book.generation == 0:
            # Grows with time, so that the first generation of a new leader is newer than the last of the old one,
            # unless that one's clock was ahead: `_overtake`.
            book.generation = max(book.generation + 1, int(self.clock.now() * 1000))
            before = {route.model: route for route in book.routes}
            for route in routes:
                if before.get(route.model) != route:
                    book.changed_in[route.model] = book.generation
            book.routes = routes
        routed = {endpoint.pod for route in routes for endpoint in route.endpoints}
        for pod in serving:
            uid, name = pod["metadata"]["uid"], pod["metadata"]["name"]
            if name in routed:
                book.left_in.pop(uid, None)
            else:
                book.left_in.setdefault(uid, book.generation)

    async def ask(self, router: RouterPod) -> None:
        """Routes out, statistics back."""
        state = self._states.setdefault(router.uid, RouterState())
        request = RouterRequest(generation=self._book.generation, routes=self._book.routes, cursor=state.cursor)
        report = await self.agents.ask_router(router.address, router.uid, request)
        if report is None:
            return
        now = self.clock.now()
        state.heard, state.generation, state.cursor = now, report.generation, report.cursor
        self._overtake(report.generation)
        self._take_statistics(report, now)

    def _overtake(self, held: int) -> None:
        """A router that holds newer routes than ours has them of a leader before, whose clock was ahead: it takes ours
        once they are the newest, and does not hold them before."""
        book = self._book
        if held > book.generation:
            book.generation = held + 1
            book.changed_in = dict.fromkeys(book.changed_in, book.generation)
            book.left_in = dict.fromkeys(book.left_in, book.generation)

    def _take_statistics(self, report: RouterReport, now: float) -> None:
        """Into the window of every model; one that the report does not name had no traffic."""
        by_model: dict[str, list[Any]] = {}
        for second in report.seconds:
            by_model.setdefault(second.model, []).append(second)
        for raw in self.observed.all("CompletionModel"):
            meta = raw["metadata"]
            memory = self.memory.of(meta["namespace"], meta["name"], meta["uid"])
            found = by_model.get(f"{meta['namespace']}/{meta['name']}", ())
            memory.window = add_seconds(memory.window, found, now)

    def judge_routers(self) -> None:
        """Which routers hold the newest routes; which pods no router sends to any longer."""
        now = self.clock.now()
        states = [self._states.setdefault(router.uid, RouterState()) for router in self.routers]
        heard = [s for s in states if s.heard is not None and now - s.heard <= ROUTER_SILENT_SECONDS]
        oldest = min((state.generation for state in heard), default=-1)
        self.memory.router_total = len(states)
        for raw in self.observed.all("CompletionModel"):
            namespace, name = raw["metadata"]["namespace"], raw["metadata"]["name"]
            changed = self._book.changed_in.get(f"{namespace}/{name}", self._book.generation)
            facts = RouterFacts(len(states), len(heard), bool(heard) and oldest >= changed)
            if self.memory.routers.get((namespace, name)) != facts:
                self.memory.routers[(namespace, name)] = facts
                self.queue.add(Key("CompletionModel", namespace, name))
        # A router that is silent may still send by its old routes: it counts until its pod is gone.
        slowest = min((state.generation for state in states), default=self._book.generation)
        left = {uid for uid, generation in self._book.left_in.items() if slowest >= generation}
        self.memory.out_of_routes = left

    def forget(self, standing: set[str]) -> None:
        """What was remembered of pods that do not stand any longer, of routers and of models that are gone."""
        for uid in [uid for uid in self._book.left_in if uid not in standing]:
            del self._book.left_in[uid]
        routers = {router.uid for router in self.routers}
        for uid in [uid for uid in self._states if uid not in routers]:
            del self._states[uid]
        for namespace, name in list(self.memory.routers):
            if self.observed.get("CompletionModel", namespace, name) is None:
                del self.memory.routers[namespace, name]
                self._book.changed_in.pop(f"{namespace}/{name}", None)


def why_not(model: CompletionModel) -> str:
    """Why the model does not serve, in the words of its Ready condition; '' where it does or nothing is known."""
    ready = find_condition(model.status.conditions, ConditionType.READY)
    if ready is None or ready.status is ConditionStatus.TRUE:
        return ""
    return f"{ready.reason}: {ready.message}" if ready.message else ready.reason


def make_router_pod(pod: dict[str, Any]) -> RouterPod | None:
    """A router's address; None while it has none. One that is told to end still sends, and has statistics to tell."""
    status = pod.get("status", {})
    if not status.get("podIP") or status.get("phase") != "Running":
        return None
    return RouterPod(pod["metadata"]["uid"], f"{bracket(status['podIP'])}:{PORT_ROUTER_EXCHANGE}")
