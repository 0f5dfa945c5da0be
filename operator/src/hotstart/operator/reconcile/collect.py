"""Garbage collection of the engine store: 1 gather uses and objects, 2 decide, 3 report bytes, 4 delete.

Only what no model, pod or build uses goes, and only after its time to live. A deletion holds the Engine's key in the
work queue, so that nobody decides on that engine meanwhile, and looks again whether it is used before each step: the
Engine's status no longer says that it stands, its files go (the manifest first), the Engine goes. Whoever wants the
engine from the first step on finds it missing, and builds it. The Engine goes last, so that a deletion that fails
half-way is taken up by the next sweep.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import astuple, dataclass, field
from datetime import UTC, datetime

from hotstart.engines.collection import ROOT, UNFINISHED_SECONDS, Fate, Marks, StoredFolder, Survey, make_survey
from hotstart.engines.key import engine_name
from hotstart.engines.manifest import engine_prefix
from hotstart.exchange.names import LABEL_ENGINE
from hotstart.operator.api import Engine
from hotstart.operator.core.errors import HotstartError
from hotstart.operator.reconcile.engine import find_wantings, namespace_uid
from hotstart.operator.reconcile.memory import Memory
from hotstart.operator.reconcile.observed import Key, Observed
from hotstart.operator.reconcile.ports import Clock, Cluster, Store
from hotstart.operator.reconcile.work_queue import WorkQueue
from pydantic import ValidationError

log = logging.getLogger(__name__)
Place = tuple[str, str]  # namespace's UID, Engine's name


@dataclass(frozen=True)
class CollectionSettings:
    """``delete`` False reports only (dry run); ``ttl`` in seconds since an engine was last in use."""

    delete: bool
    ttl: float


@dataclass(frozen=True)
class Collector:
    """One a process. ``on_report`` hears the bytes of every fate after each sweep."""

    cluster: Cluster
    store: Store
    clock: Clock
    observed: Observed
    memory: Memory
    queue: WorkQueue
    settings: CollectionSettings
    on_report: Callable[[Mapping[Fate, int]], None] = lambda sizes: None
    _engines: dict[Place, Engine] = field(default_factory=dict)

    async def sweep(self) -> Survey:
        """Looks at the whole store once, deletes what is garbage, and returns what it saw.

        What cannot be deleted waits for the next sweep, and keeps nothing else waiting.

        Raises:
            HotstartError: the store or the API server does not answer.
        """
        names = await self._gather_namespaces()  # 1
        objects = await self.store.list_objects(ROOT)
        now, used = self.clock.now(), self._find_uses(names)
        await self._note_uses(used, now)
        marks = Marks(used, self._unused_since(), names)
        survey = make_survey(objects, marks, now, self.settings.ttl)  # 2
        sizes = survey.bytes_by_fate()  # 3
        self.on_report(sizes)
        text = " ".join(f"{fate.value.lower()}={size}" for fate, size in sizes.items())
        log.info("engine store swept delete=%s bytes: %s", self.settings.delete, text)
        if self.settings.delete:  # 4
            for folder in survey.garbage:
                await attempt("delete engine", folder.engine_key, self._delete(folder, names))
            for place in self._find_empty(survey, used, now):
                await attempt("delete Engine", place[1], self._delete_empty(place, names))
            await self._abort_uploads(names, now)
        return survey

    async def _gather_namespaces(self) -> dict[str, str]:
        """Names of the namespaces that have models or engines, by UID; their Engines go into ``_engines``."""
        raws = [*self.observed.all("CompletionModel"), *self.observed.all("Engine")]
        names = {raw["metadata"]["namespace"] for raw in raws}
        found = {await namespace_uid(self.cluster, self.memory, name): name for name in sorted(names)}
        uids = {name: uid for uid, name in found.items()}
        self._engines.clear()
        for raw in raws:  # not what came meanwhile: its namespace may be a new one
            if raw["kind"] != "Engine":
                continue
            place = (uids[raw["metadata"]["namespace"]], raw["metadata"]["name"])
            try:
                self._engines[place] = Engine.from_api(raw)
            except ValidationError as error:
                log.warning("engine unreadable, it is kept name=%s error=%s", raw["metadata"]["name"], error)
        return found

    def _find_uses(self, names: Mapping[str, str]) -> frozenset[Place]:
        """Places that a model, a pod or a Job uses now; what cannot be read counts as used."""
        uids = {name: uid for uid, name in names.items()}
        used: set[Place] = set()
        for raw in self.observed.all("CompletionModel"):
            key = raw.get("status", {}).get("engine", {}).get("key", "")
            used.add((uids.get(raw["metadata"]["namespace"], ""), engine_name(key)))
        used |= self._find_labelled("Pod", uids) | self._find_labelled("Job", uids)
        for raw in self.observed.all("Engine"):
            place = (uids.get(raw["metadata"]["namespace"], ""), raw["metadata"]["name"])
            engine = self._engines.get(place)
            if engine is None or find_wantings(self.observed, engine):
                used.add(place)
        return frozenset(used)

    def _find_labelled(self, kind: str, uids: Mapping[str, str]) -> set[Place]:
        """Places that the label of a pod or a Job names, whatever has become of it."""
        metas = [raw["metadata"] for raw in self.observed.all(kind)]
        return {(uids.get(meta["namespace"], ""), meta.get("labels", {}).get(LABEL_ENGINE, "")) for meta in metas}

    def _unused_since(self) -> dict[Place, float]:
        return {
            place: engine.status.unused_since.timestamp()
            for place, engine in self._engines.items()
            if engine.status.unused_since is not None
        }

    async def _note_uses(self, used: frozenset[Place], now: float) -> None:
        """Writes ``status.unusedSince`` where it changes: a restart forgets nothing."""
        for place, engine in list(self._engines.items()):
            since = engine.status.unused_since
            if (since is None) == (place in used):
                continue
            value = None if place in used else datetime.fromtimestamp(int(now), UTC)
            text = None if value is None else value.strftime("%Y-%m-%dT%H:%M:%SZ")
            meta = engine.metadata
            body = {"status": {"unusedSince": text}}
            changed = await self.cluster.patch_status("Engine", meta.namespace, meta.name, body)
            if changed is not None:
                self.observed.put({**changed, "kind": "Engine"})
            status = engine.status.model_copy(update={"unused_since": value})
            self._engines[place] = engine.model_copy(update={"status": status})

    async def _delete(self, folder: StoredFolder, names: Mapping[str, str]) -> None:
        """The engine's folder, then its Engine; neither where it is decided on or used just now."""
        key = Key("Engine", names[folder.namespace_uid], engine_name(folder.engine_key))
        async with self.queue.hold(key) as held:
            if not held or folder.place in self._find_uses(names):
                return
            self.queue.add(key)  # looked at again afterwards, where its Engine still stands
            await self._take_back(key)
            if folder.place in self._find_uses(names):
                return  # wanted again meanwhile, and still in the store
            count = await self.store.delete_prefix(engine_prefix(folder.namespace_uid, folder.engine_key))
            log.info("engine deleted key=%s objects=%d bytes=%d", folder.engine_key[:12], count, folder.size)
            if folder.place not in self._find_uses(names):
                await self._delete_object(key)

    async def _take_back(self, key: Key) -> None:
        """The Engine says no longer that it stands: from now on nobody makes a pod of it."""
        if self.observed.get(*astuple(key)) is not None:
            body = {"status": {"manifestDigest": None}}
            changed = await self.cluster.patch_status(key.kind, key.namespace, key.name, body)
            if changed is not None:
                self.observed.put({**changed, "kind": key.kind})

    async def _delete_object(self, key: Key) -> None:
        raw = self.observed.get(*astuple(key))
        if raw is not None:
            await self.cluster.delete(key.kind, key.namespace, key.name, raw["metadata"]["uid"])
            self.observed.remove(raw)

    def _find_empty(self, survey: Survey, used: frozenset[Place], now: float) -> tuple[Place, ...]:
        """Engines that are long out of use and have no files, but for a quarantine's marker, which outlives them."""
        standing = {folder.place for folder, _ in survey.fates if not folder.marked}
        return tuple(
            place
            for place, since in self._unused_since().items()
            if place not in used and place not in standing and now - since > self.settings.ttl
        )

    async def _delete_empty(self, place: Place, names: Mapping[str, str]) -> None:
        """An Engine without files: its build failed, or never began."""
        key = Key("Engine", names[place[0]], place[1])
        async with self.queue.hold(key) as held:
            if held and place not in self._find_uses(names):
                await self._delete_object(key)
                log.info("engine without files deleted name=%s", key.name)

    async def _abort_uploads(self, names: Mapping[str, str], now: float) -> None:
        """Ends uploads that no build can still be at: also those of engines that serve, whose first builder died."""
        uids = {name: uid for uid, name in names.items()}
        for upload in await self.store.list_uploads(ROOT):
            _, uid, key, *_ = (*upload.object_key.split("/"), "", "")
            building = self._find_labelled("Job", uids)
            if uid in names and (uid, engine_name(key)) not in building and now - upload.began > UNFINISHED_SECONDS:
                await attempt("abort upload", key, self.store.abort_upload(upload.object_key, upload.upload_id))


async def attempt(what: str, key: str, work: Awaitable[None]) -> None:
    """One deletion; a failure is logged and left to the next sweep."""
    try:
        await work
    except HotstartError as error:
        log.warning("sweep cannot %s key=%s error=%s", what, key[:12], error)


async def sweep_quietly(collector: Collector) -> None:
    """One sweep; a failure is logged and left to the next one: it must not end the leader."""
    try:
        await collector.sweep()
    except HotstartError as error:
        log.warning("sweep failed error=%s", error)
    except Exception:
        log.exception("sweep raised")
