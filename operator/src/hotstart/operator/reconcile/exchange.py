"""The express lane: once a second, one message to every pod agent, router and builder, all at once.

Out go assignments with presigned URLs, drains and routes; back come states and statistics. The API server stays the
truth: an assignment is read from its pod's annotation. What changed wakes the model's reconcile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from hotstart.engines.manifest import (
    BadManifest,
    Manifest,
    bundle_prefix,
    engine_prefix,
    manifest_sha256,
    parse_manifest,
)
from hotstart.exchange.messages import (
    EngineFile,
    PodReport,
    PodRequest,
    PodState,
)
from hotstart.exchange.names import (
    COMPONENT_BUILD,
    COMPONENT_SERVING,
    LABEL_COMPONENT,
    LABEL_ROLE,
    PORT_AGENT,
    ROLE_DRAINING,
)
from hotstart.operator.core.errors import HotstartError
from hotstart.operator.core.facts import FRESH_SECONDS, PodFacts, make_pod_facts, owner_of
from hotstart.operator.core.routes import bracket
from hotstart.operator.reconcile.builds import BuildServer
from hotstart.operator.reconcile.engine import namespace_uid
from hotstart.operator.reconcile.memory import Heard, Memory, hear
from hotstart.operator.reconcile.observed import Key, Observed
from hotstart.operator.reconcile.ports import Agents, Clock, Cluster, Store
from hotstart.operator.reconcile.routing import Routing
from hotstart.operator.reconcile.work_queue import WorkQueue

log = logging.getLogger(__name__)
PATIENCE_SECONDS = 0.5
AT_ONCE = 64  # messages under way
URLS_LIVE_SECONDS = 300.0  # presigned URLs are made anew after so long; they hold for longer

#: States of an agent in which it still needs the files' URLs.
BEFORE_FETCHED = frozenset({PodState.EMPTY, PodState.FETCHING, PodState.FAILED})


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
    routing: Routing
    _manifests: dict[tuple[str, str], Manifest] = field(default_factory=dict)
    _files: dict[tuple[str, str, str, str], tuple[float, tuple[EngineFile, ...]]] = field(default_factory=dict)
    _background: dict[str, asyncio.Task[Any]] = field(default_factory=dict)
    _asked: set[str] = field(default_factory=set)  # what was waited for since the last whole turn, by name
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
        if not quick:
            self._forget_work()
        self.routing.make_routes(serving)
        routers = [router for router in self.routing.routers if not quick or self.routing.lags(router)]
        await asyncio.gather(*(self._gated(self.routing.ask(router)) for router in routers))
        self.routing.judge_routers()

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

    async def _patiently(self, name: str, make: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """The result of something that may take long, if it is there within half a second; it goes on meanwhile.

        A slow store must not keep the other agents waiting. What goes on is asked for again in the next turn.
        """
        self._asked.add(name)
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
        except Exception:  # of this work: the others are heard all the same
            log.exception("exchange raised work=%s", name)
            return None

    async def _gated(self, work: Any) -> None:
        async with self._gate:
            try:
                await work
            except HotstartError as error:
                log.warning("exchange failed error=%s", error)
            except Exception:  # of this agent or router: the others are heard all the same
                log.exception("exchange raised")

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
        self.memory.reports[facts.uid] = hear(heard, report, self.clock.now())
        stale = heard is None or self.clock.now() - heard.at > FRESH_SECONDS
        if stale or heard is None or is_news(heard.report, report) or facts.role == ROLE_DRAINING:
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
        place = (pod.namespace, wanted.engine_key, wanted.manifest_sha256, wanted.tokenizer_digest)
        made, files = self._files.get(place, (0.0, ()))
        now = self.clock.now()
        if files and now - made < URLS_LIVE_SECONDS:
            return files
        key, uid = wanted.engine_key, await namespace_uid(self.cluster, self.memory, pod.namespace)
        places = {engine_prefix(uid, key): wanted.manifest_sha256}
        if wanted.tokenizer_digest:
            places[bundle_prefix(uid, key, wanted.tokenizer_digest)] = wanted.bundle_sha256
        found: dict[str, EngineFile] = {}
        for prefix, digest in places.items():  # a bundle's files take the place of the engine's
            manifest = await self._find_manifest(prefix, key, digest)
            if manifest is None:
                return ()
            for f in manifest.files:
                url = self.store.presign_get(prefix + f.path)
                found[f.path] = EngineFile(path=f.path, size=f.size, sha256=f.sha256, url=url)
        files = tuple(found.values())
        self._files[place] = (now, files)
        return files

    async def _find_manifest(self, prefix: str, key: str, digest: str) -> Manifest | None:
        """The manifest with this digest; None where it is not known yet."""
        return self._manifests.get((key, digest)) or await self._patiently(
            f"manifest {prefix}", lambda: self._load_manifest(prefix, key, digest)
        )

    async def _load_manifest(self, prefix: str, key: str, digest: str) -> Manifest | None:
        """The manifest that an assignment names; None where another or none stands."""
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

    def _forget(self, standing: set[str]) -> None:
        """What was remembered of pods that are gone."""
        for uid in [uid for uid in self.memory.reports if uid not in standing]:
            del self.memory.reports[uid]
        self.routing.forget(standing)
        self.builds.forget(standing)

    def _forget_work(self) -> None:
        """What was made or begun for pods that want it no longer."""
        for name in [name for name, task in self._background.items() if task.done() and name not in self._asked]:
            log.debug("nobody waits any longer work=%s failed=%s", name, self._background.pop(name).exception())
        self._asked.clear()
        now = self.clock.now()
        for place in [place for place, (made, _) in self._files.items() if now - made >= URLS_LIVE_SECONDS]:
            del self._files[place]
        keys = {place[1] for place in self._files}
        for key in [key for key in self._manifests if key[0] not in keys]:
            del self._manifests[key]


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
