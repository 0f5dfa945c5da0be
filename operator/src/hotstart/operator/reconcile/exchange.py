"""The express lane: once a second, one message to every pod agent, router and builder, all at once.

Out go assignments with presigned URLs, drains and routes; back come states and statistics. The API server stays the
truth: an assignment is read from its pod's annotation. What changed wakes the model's reconcile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from hotstart.engines.manifest import BadManifest, Manifest, engine_prefix, manifest_sha256, parse_manifest
from hotstart.exchange.messages import (
    EngineFile,
    ModelRoute,
    PodReport,
    PodRequest,
    PodState,
    RouterReport,
    RouterRequest,
)
from hotstart.exchange.names import (
    COMPONENT_BUILD,
    COMPONENT_SERVING,
    LABEL_COMPONENT,
    LABEL_ROLE,
    PORT_AGENT,
    PORT_ROUTER_EXCHANGE,
    ROLE_DRAINING,
)
from hotstart.operator.api import CompletionModel, ConditionStatus, ConditionType
from hotstart.operator.core.conditions import find_condition
from hotstart.operator.core.errors import HotstartError
from hotstart.operator.core.facts import PodFacts, make_pod_facts, owner_of, seconds_of
from hotstart.operator.core.routes import bracket, make_route
from hotstart.operator.core.verdicts import RouterFacts
from hotstart.operator.core.window import add_seconds
from hotstart.operator.reconcile.builds import BuildServer
from hotstart.operator.reconcile.engine import namespace_uid
from hotstart.operator.reconcile.memory import Heard, Memory
from hotstart.operator.reconcile.model import gather_capacity, gather_pods
from hotstart.operator.reconcile.observed import Key, Observed
from hotstart.operator.reconcile.ports import Agents, Clock, Cluster, Store
from hotstart.operator.reconcile.work_queue import WorkQueue
from pydantic import ValidationError

log = logging.getLogger(__name__)
PATIENCE_SECONDS = 0.5
AT_ONCE = 64  # messages under way
ROUTER_SILENT_SECONDS = 5.0
URLS_LIVE_SECONDS = 300.0  # presigned URLs are made anew after so long; they hold for longer

#: States of an agent in which it still needs the files' URLs.
BEFORE_FETCHED = frozenset({PodState.EMPTY, PodState.FETCHING, PodState.FAILED})


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
class Exchange:
    """One a process. ``turn`` is one round; the caller gives the rhythm."""

    cluster: Cluster
    store: Store
    agents: Agents
    clock: Clock
    observed: Observed
    memory: Memory
    queue: WorkQueue
    builds: BuildServer
    routers: tuple[RouterPod, ...] = ()
    _router_states: dict[str, RouterState] = field(default_factory=dict)
    _book: RouteBook = field(default_factory=RouteBook)
    _manifests: dict[tuple[str, str], Manifest] = field(default_factory=dict)
    _files: dict[tuple[str, str], tuple[float, tuple[EngineFile, ...]]] = field(default_factory=dict)
    _background: dict[str, asyncio.Task[Any]] = field(default_factory=dict)
    _gate: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))

    async def turn(self, *, quick: bool = False) -> None:
        """One message to everybody, routers last: they hear of the pods that became ready in this very turn.

        A ``quick`` turn is for pods on their way in or out, and for routers that lack the newest routes.
        """
        pods = [pod for pod in self.observed.all("Pod") if not gone_for_good(pod)]
        serving = [pod for pod in pods if component_of(pod) == COMPONENT_SERVING]
        builders = [pod for pod in pods if component_of(pod) == COMPONENT_BUILD]
        asked = [pod for pod in serving if not quick or self._is_moving(pod)]
        await asyncio.gather(
            *(self._gated(self._ask_pod(pod)) for pod in asked),
            *(self._patiently(f"build {p['metadata']['uid']}", partial(self.builds.serve, p)) for p in builders),
        )
        self._forget({pod["metadata"]["uid"] for pod in pods})
        self._make_routes(serving)
        await asyncio.gather(
            *(self._gated(self._ask_router(router)) for router in self.routers if not quick or self._lags(router))
        )
        self._judge_routers()

    def is_moving(self) -> bool:
        """Whether a quick turn is worth its while: a pod is on its way in or out."""
        return any(self._is_moving(pod) for pod in self.observed.all("Pod") if component_of(pod) == COMPONENT_SERVING)

    def _is_moving(self, pod: dict[str, Any]) -> bool:
        if pod.get("status", {}).get("phase") != "Running" or pod["metadata"].get("deletionTimestamp"):
            return False
        if pod["metadata"].get("labels", {}).get(LABEL_ROLE) == ROLE_DRAINING:
            return True
        heard = self.memory.reports.get(pod["metadata"]["uid"])
        return heard is None or heard.report.state not in (PodState.READY, PodState.FAILED)

    def _lags(self, router: RouterPod) -> bool:
        state = self._router_states.get(router.uid)
        return state is None or state.generation < self._book.generation

    async def _patiently(self, name: str, make: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """The result of something that may take long, if it is there within half a second; it goes on meanwhile.

        A slow store must not keep the other agents waiting. What goes on is asked for again in the next turn.
        """
        task = self._background.get(name)
        if task is None:
            task = self._background[name] = asyncio.create_task(make(), name=name)
        await asyncio.wait({task}, timeout=PATIENCE_SECONDS)
        if not task.done():
            return None
        self._background.pop(name, None)  # another waiter may have taken it out
        try:
            return task.result()
        except HotstartError as error:
            log.warning("exchange failed work=%s error=%s", name, error)
            return None

    async def _gated(self, work: Any) -> None:
        async with self._gate:
            try:
                await work
            except HotstartError as error:
                log.warning("exchange failed error=%s", error)

    async def _ask_pod(self, pod: dict[str, Any]) -> None:
        """Assignment, drain and URLs out; the agent's report back."""
        facts = make_pod_facts(pod)
        if not facts.ip or facts.phase != "Running":
            return
        heard = self.memory.reports.get(facts.uid)
        request = PodRequest(
            assignment=facts.assignment,
            files=await self._files_for(facts, heard),
            drain=facts.role == ROLE_DRAINING,
        )
        report = await self.agents.ask_pod(f"{bracket(facts.ip)}:{PORT_AGENT}", facts.uid, request)
        if report is None:
            return
        self.memory.reports[facts.uid] = Heard(report, self.clock.now())
        if heard is None or is_news(heard.report, report) or facts.role == ROLE_DRAINING:
            self._wake(pod)

    def _wake(self, pod: dict[str, Any]) -> None:
        namespace, model = pod["metadata"]["namespace"], owner_of(pod, "CompletionModel")
        if model:
            self.queue.add(Key("CompletionModel", namespace, model))

    async def _files_for(self, pod: PodFacts, heard: Heard | None) -> tuple[EngineFile, ...]:
        """The engine's files with URLs, while the agent may need them."""
        wanted = pod.assignment
        if wanted is None or pod.deleting or pod.role == ROLE_DRAINING:
            return ()
        if heard is not None and has_files(heard.report, wanted.engine_key):
            return ()
        place = (pod.namespace, wanted.engine_key)
        made, files = self._files.get(place, (0.0, ()))
        now = self.clock.now()
        if files and now - made < URLS_LIVE_SECONDS:
            return files
        manifest = self._manifests.get((wanted.engine_key, wanted.manifest_sha256)) or await self._patiently(
            f"manifest {pod.namespace} {wanted.engine_key}",
            lambda: self._load_manifest(pod.namespace, wanted.engine_key, wanted.manifest_sha256),
        )
        if manifest is None:
            return ()
        prefix = engine_prefix(await namespace_uid(self.cluster, self.memory, pod.namespace), wanted.engine_key)
        files = tuple(
            EngineFile(path=f.path, size=f.size, sha256=f.sha256, url=self.store.presign_get(prefix + f.path))
            for f in manifest.files
        )
        self._files[place] = (now, files)
        return files

    async def _load_manifest(self, namespace: str, key: str, digest: str) -> Manifest | None:
        """The manifest that an assignment names; None where another or none stands."""
        prefix = engine_prefix(await namespace_uid(self.cluster, self.memory, namespace), key)
        text = await self.store.get_manifest(prefix)
        if text is None or manifest_sha256(text) != digest:
            log.warning("manifest of an assignment is gone or another key=%s digest=%s", key[:12], digest[:12])
            return None
        try:
            manifest = parse_manifest(text, key=key)
        except BadManifest as error:
            log.warning("manifest unreadable key=%s error=%s", key[:12], error)
            return None
        self._manifests[(key, digest)] = manifest
        return manifest

    def _make_routes(self, serving: Iterable[dict[str, Any]]) -> None:
        """The routes from what is known now; a change is a new generation."""
        now = self.clock.now()
        by_model: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for pod in serving:
            by_model.setdefault((pod["metadata"]["namespace"], owner_of(pod, "CompletionModel")), []).append(pod)
        routes: list[ModelRoute] = []
        for raw in self.observed.all("CompletionModel"):
            if raw["metadata"].get("deletionTimestamp"):
                continue
            try:
                model = CompletionModel.from_api(raw)
            except ValidationError:
                log.debug("model unreadable, its own reconcile says so name=%s", raw["metadata"]["name"])
                continue
            place = (model.metadata.namespace, model.metadata.name)
            facts = gather_pods(by_model.get(place, ()), self.memory.reports)
            created = int(seconds_of(model.metadata.creation_timestamp) or 0)
            cap = gather_capacity(self.observed, model).cap
            routes.append(make_route(model, facts, cap=cap, created=created, reason=why_not(model), now=now))
        self._publish_routes(tuple(routes), serving)

    def _publish_routes(self, routes: tuple[ModelRoute, ...], serving: Iterable[dict[str, Any]]) -> None:
        book = self._book
        if routes != book.routes or book.generation == 0:
            # Grows with time, so that the first generation of a new leader is newer than the last of the old one.
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

    async def _ask_router(self, router: RouterPod) -> None:
        state = self._router_states.setdefault(router.uid, RouterState())
        request = RouterRequest(generation=self._book.generation, routes=self._book.routes, cursor=state.cursor)
        report = await self.agents.ask_router(router.address, router.uid, request)
        if report is None:
            return
        now = self.clock.now()
        state.heard, state.generation, state.cursor = now, report.generation, max(state.cursor, report.cursor)
        self._take_statistics(report, now)

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

    def _judge_routers(self) -> None:
        """Which routers hold the newest routes; which pods no router sends to any longer."""
        now = self.clock.now()
        states = [self._router_states.setdefault(router.uid, RouterState()) for router in self.routers]
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

    def _forget(self, standing: set[str]) -> None:
        """What was remembered of pods and routers that are gone."""
        for known in (self.memory.reports, self._book.left_in):
            for uid in [uid for uid in known if uid not in standing]:
                del known[uid]
        routers = {router.uid for router in self.routers}
        for uid in [uid for uid in self._router_states if uid not in routers]:
            del self._router_states[uid]


def has_files(report: PodReport, key: str) -> bool:
    """Whether the agent has fetched that engine."""
    return report.engine_key == key and report.state not in BEFORE_FETCHED


def component_of(pod: dict[str, Any]) -> str:
    """The pod's component."""
    return str(pod["metadata"].get("labels", {}).get(LABEL_COMPONENT, ""))


def gone_for_good(pod: dict[str, Any]) -> bool:
    """Whether nothing runs in the pod any longer."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def is_news(old: PodReport, new: PodReport) -> bool:
    """Whether a report says what a decision may depend on."""
    return (old.state, old.failure, old.generation) != (new.state, new.failure, new.generation)


def why_not(model: CompletionModel) -> str:
    """Why the model does not serve, in the words of its Ready condition; '' where it does or nothing is known."""
    ready = find_condition(model.status.conditions, ConditionType.READY)
    if ready is None or ready.status is ConditionStatus.TRUE:
        return ""
    return f"{ready.reason}: {ready.message}" if ready.message else ready.reason


def make_router_pod(pod: dict[str, Any]) -> RouterPod | None:
    """A router's address; None while it has none."""
    status = pod.get("status", {})
    if not status.get("podIP") or status.get("phase") != "Running" or pod["metadata"].get("deletionTimestamp"):
        return None
    return RouterPod(pod["metadata"]["uid"], f"{bracket(status['podIP'])}:{PORT_ROUTER_EXCHANGE}")
