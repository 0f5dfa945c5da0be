"""The process while it leads: watches, workers, exchange, scaling and resync, side by side."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field, replace

import aiohttp
from hotstart.exchange.client import ExchangeClient
from hotstart.exchange.names import COMPONENT_ROUTER, LABEL_COMPONENT
from hotstart.operator.adapters import metrics
from hotstart.operator.adapters.agents import ExchangeAgents
from hotstart.operator.adapters.clock import SystemClock
from hotstart.operator.adapters.events import KubeEvents
from hotstart.operator.adapters.kube import KubeCluster
from hotstart.operator.adapters.object_store import make_store
from hotstart.operator.adapters.signing_keys import KeySecret
from hotstart.operator.app.key_keeper import KeyKeeper
from hotstart.operator.core.errors import Forbidden, HotstartError
from hotstart.operator.core.key_rotation import decide_keys
from hotstart.operator.core.writes import Object
from hotstart.operator.handlers.watches import run_watches
from hotstart.operator.reconcile.builds import BuildServer
from hotstart.operator.reconcile.collect import Collector, sweep_quietly
from hotstart.operator.reconcile.engine import EngineReconciler
from hotstart.operator.reconcile.exchange import Exchange
from hotstart.operator.reconcile.memory import Memory
from hotstart.operator.reconcile.mend import Mender
from hotstart.operator.reconcile.model import ModelReconciler
from hotstart.operator.reconcile.observed import SELECTORS, WATCHED, Key, Observed, keys_of, version_of
from hotstart.operator.reconcile.routing import RouterPod, Routing, make_router_pod
from hotstart.operator.reconcile.scaling import Scaler
from hotstart.operator.reconcile.work_queue import WorkQueue
from hotstart.operator.settings import Settings

log = logging.getLogger(__name__)
TURN_SECONDS = 1.0
QUICK_SECONDS = 0.25  # between turns while a pod is on its way in or out
HANGING_SECONDS = 120.0
RESYNC_SECONDS = 300.0
SWEEP_SECONDS = 600.0
ROUTER_LIST_SECONDS = 3.0


@dataclass
class Leader:
    """All that leads. Built by ``make_leader``."""

    settings: Settings
    cluster: KubeCluster
    observed: Observed
    queue: WorkQueue
    exchange: Exchange
    scaler: Scaler
    collector: Collector | None
    mender: Mender
    keys: KeyKeeper
    _routers: tuple[RouterPod, ...] | None = None  # as last listed; None: not yet
    _turned_at: float = field(default_factory=time.monotonic)

    async def run(self) -> None:
        """Leads until it is cancelled. Raises whatever ended a part."""
        await self.resync()
        await self.keys.turn_quietly()
        await self._first_turn()
        await run_until_first(
            run_watches(self.on_event, self.settings.watch_namespaces),
            self.queue.run(),
            self.keys.keep(),
            self._take_turns(),
            self._list_routers_for_ever(),
            self._resync_for_ever(),
            self._sweep_for_ever(),
            self._mend_for_ever(),
        )

    def is_alive(self) -> bool:
        """Whether the turns go on; false says that this process hangs."""
        return time.monotonic() - self._turned_at < HANGING_SECONDS

    async def _first_turn(self) -> None:
        """All agents and routers are heard before anything is decided: a new leader says nothing for want of news."""
        try:
            await self._turn()
        except HotstartError as error:
            log.warning("first turn failed error=%s", error)
        except Exception:  # the turns that follow are made all the same
            log.exception("first turn raised")

    def on_event(self, kind: str, obj: Object, deleted: bool) -> None:
        """One event of a watch: the view first, then the keys, also where our own write was seen before its event."""
        keys = keys_of(obj, self.observed)
        if deleted:
            self.observed.remove(obj, at=version_of(obj))
        else:
            self.observed.put(obj)
        for key in keys:
            self.queue.add(key)

    async def resync(self) -> None:
        """Lists every kind anew, and reconciles everything once.

        Raises:
            Forbidden: a namespace may not be listed; the others were.
        """
        refusal: Forbidden | None = None
        self.exchange.memory.namespaces.clear()  # one may have been made anew under its name
        for kind in WATCHED:
            for namespace in self.settings.watch_namespaces or ("",):
                within = "" if kind == "Node" else namespace
                labels = SELECTORS.get(kind, "")
                try:
                    objects, version = await self.cluster.list_at_version(kind, namespace=within, labels=labels)
                except Forbidden as error:
                    refusal = error
                    continue
                self.observed.replace(kind, objects, namespace=within, before=version)
        for config in self.observed.all("ConfigMap"):
            self.observed.forget(config)
        for kind in ("CompletionModel", "Engine"):
            for obj in self.observed.all(kind):
                self.queue.add(Key(kind, obj["metadata"].get("namespace", ""), obj["metadata"]["name"]))
        if refusal is not None:
            raise refusal

    async def _resync_for_ever(self) -> None:
        while True:
            await asyncio.sleep(RESYNC_SECONDS)
            try:
                await self.resync()
            except HotstartError as error:
                log.warning("resync failed error=%s", error)

    async def _sweep_for_ever(self) -> None:
        """Garbage collection of the engine store; the first sweep waits for a resync's worth of events."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            if self.collector is not None:
                await sweep_quietly(self.collector)

    async def _mend_for_ever(self) -> None:
        """Engines that are damaged in the store are built again."""
        while True:
            await asyncio.sleep(TURN_SECONDS)
            try:
                await self.mender.turn()
            except Exception:
                log.exception("looking for damaged engines raised")

    async def _take_turns(self) -> None:
        """A whole turn each second, quick ones between while pods are on their way; turns never overlap."""
        while True:
            begun = time.monotonic()
            try:
                if begun - self._turned_at >= TURN_SECONDS:
                    self._turned_at = begun
                    await self._turn()
                    metrics.EXCHANGE_TURN.observe(time.monotonic() - begun)
                elif self.exchange.is_moving():
                    await self.exchange.turn(quick=True)
            except HotstartError as error:
                log.warning("turn failed error=%s", error)
            except Exception:
                log.exception("turn raised")
            await asyncio.sleep(max(0.02, QUICK_SECONDS - (time.monotonic() - begun)))

    async def _turn(self) -> None:
        if self._routers is None:  # without them no turn: every pod would be taken for one that no router sends to
            self._routers = await self._list_routers()
        self.exchange.routing.routers = self._routers
        await self.exchange.turn()
        await self.scaler.turn()
        self._measure()

    async def _list_routers_for_ever(self) -> None:
        """Beside the turns, which go on with the routers of before while the API server does not tell."""
        while True:
            await asyncio.sleep(ROUTER_LIST_SECONDS)
            try:
                self._routers = await self._list_routers()
            except HotstartError as error:
                log.warning("routers not listed, those of before are asked error=%s", error)
            except Exception:
                log.exception("listing the routers raised")

    async def _list_routers(self) -> tuple[RouterPod, ...]:
        labels = f"{LABEL_COMPONENT}={COMPONENT_ROUTER}"
        pods = await self.cluster.list("Pod", namespace=self.settings.namespace, labels=labels)
        return tuple(router for pod in pods if (router := make_router_pod(pod)) is not None)

    def _measure(self) -> None:
        """Gauges of what is observed."""
        metrics.QUEUE_DEPTH.set(self.queue.depth)
        metrics.REPLICAS.clear()  # of models that are gone
        for model in self.observed.all("CompletionModel"):
            namespace, name = model["metadata"]["namespace"], model["metadata"]["name"]
            wanted, ready = model["spec"].get("replicas", 1), model.get("status", {}).get("readyReplicas", 0)
            metrics.REPLICAS.labels(namespace, name, "wanted").set(wanted)
            metrics.REPLICAS.labels(namespace, name, "ready").set(ready)


async def run_until_first(*works: Awaitable[None]) -> None:
    """Runs side by side until the first ends, and ends the others. Raises what the first one raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def make_leader(
    settings: Settings,
    cluster: KubeCluster,
    secret: KeySecret,
    session: aiohttp.ClientSession,
    *,
    epoch: int,
) -> Leader:
    """Puts the parts together."""
    clock, observed, memory = SystemClock(), Observed(settings.paused), Memory()
    store = make_store(settings.store)
    period = settings.key_rotation
    signing = decide_keys(secret.keys, None, clock.now(), period=period, forced=False).signing
    client = ExchangeClient(session=session, key=signing, epoch=epoch)
    agents = ExchangeAgents(client)
    events = KubeEvents(cluster, settings.pod_name)
    models = ModelReconciler(cluster, events, clock, observed, memory, settings.images, "")
    engines = EngineReconciler(cluster, store, events, clock, observed, memory, settings.images)

    async def work(key: Key) -> float | None:
        reconciler: ModelReconciler | EngineReconciler = engines
        if key.kind == "CompletionModel":
            mender.hear(key.namespace)
            reconciler = replace(models, jwks=keeper.jwks)
        with metrics.RECONCILE_SECONDS.labels(key.kind).time():
            try:
                check_in = await reconciler.reconcile(key)
            except HotstartError:
                metrics.RECONCILES.labels(key.kind, "failed").inc()
                raise
        metrics.RECONCILES.labels(key.kind, "done").inc()
        return check_in

    queue = WorkQueue(work, on_error=lambda key: metrics.RECONCILES.labels(key.kind, "raised").inc())
    keeper = KeyKeeper(cluster, settings.namespace, clock, period, client, observed, queue, secret.keys)
    builds = BuildServer(cluster, store, agents, clock, observed, memory, queue)
    routing = Routing(agents, clock, observed, memory, queue)
    exchange = Exchange(cluster, store, agents, clock, observed, memory, queue, builds, routing)
    scaler = Scaler(cluster, events, clock, observed, memory, queue)
    collector = None
    if settings.collection is not None and not settings.paused:
        collector = Collector(
            cluster, store, clock, observed, memory, queue, settings.collection, on_report=metrics.note_store_bytes
        )
    mender = Mender(cluster, store, events, clock, observed, memory, queue, engines)
    return Leader(settings, cluster, observed, queue, exchange, scaler, collector, mender, keeper)
