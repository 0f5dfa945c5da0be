"""Reconciles one Engine: 1 gather (the store's manifest first), 2 decide, 3 apply, 4 report."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from hotstart.engines.manifest import (
    BadManifest,
    Manifest,
    bundle_prefix,
    engine_prefix,
    manifest_sha256,
    parse_manifest,
)
from hotstart.exchange.messages import BuildPhase, ServingOptions
from hotstart.operator.api import CompletionModel, ConditionType, Engine, Reason
from hotstart.operator.api.model_spec import Checkpoint, Management
from hotstart.operator.core.build import decide_engine, say_held_up
from hotstart.operator.core.bundles import find_bundle
from hotstart.operator.core.calibrator import replica_limits, with_calibrator
from hotstart.operator.core.conditions import find_condition
from hotstart.operator.core.diff import diff_merge
from hotstart.operator.core.engine_status import is_stored, judge_nodes
from hotstart.operator.core.engine_view import EnginePlan, EngineView, StoredEngine
from hotstart.operator.core.errors import HotstartError, StoreFailed
from hotstart.operator.core.events import EventNote, note_changes
from hotstart.operator.core.gpu_fleet import GpuFleet
from hotstart.operator.core.gpu_jobs import BuildSize
from hotstart.operator.core.job_manifests import make_build_job, make_bundle_job
from hotstart.operator.core.jobs import Failure, answers
from hotstart.operator.core.quarantine import Quarantine, parse_quarantine
from hotstart.operator.core.recipe import find_wanted_engine, make_serving_options
from hotstart.operator.core.revision import Bundle, Images
from hotstart.operator.core.writes import Create, Delete, Write
from hotstart.operator.reconcile.apply import Applied, apply_writes
from hotstart.operator.reconcile.gpus import gather_gpus
from hotstart.operator.reconcile.memory import Memory
from hotstart.operator.reconcile.model import describe_refusal, gather_build_jobs
from hotstart.operator.reconcile.observed import Key, Observed
from hotstart.operator.reconcile.ports import Clock, Cluster, Events, Store
from pydantic import ValidationError

log = logging.getLogger(__name__)
RECHECK_SECONDS = 290.0  # an engine that stands is looked for again at each resync


@dataclass(frozen=True)
class Wanting:
    """A model that wants the engine now: its checkpoint with its Secret, its serving options, what a build takes."""

    tokenizer_digest: str
    checkpoint: Checkpoint
    serving: ServingOptions
    limits: dict[str, str]  # of a replica, for the calibration
    paused: bool
    size: BuildSize | None = None


@dataclass(frozen=True)
class EngineReconciler:
    """One a process."""

    cluster: Cluster
    store: Store
    events: Events
    clock: Clock
    observed: Observed
    memory: Memory
    images: Images
    _unwanted: dict[Key, float] = field(default_factory=dict)  # since when no model wants the engine
    _checked: dict[Key, tuple[str, float]] = field(default_factory=dict)  # UID, and when it was last seen in the store

    async def reconcile(self, key: Key) -> float | None:
        """Brings the engine nearer to standing in the store; returns the seconds until another look is due."""
        raw = self.observed.get("Engine", key.namespace, key.name)
        if raw is None or raw["metadata"].get("deletionTimestamp"):
            self._checked.pop(key, None)
            self._unwanted.pop(key, None)
            self.memory.forget_build(key.namespace, key.name)
            return None
        try:
            engine = Engine.from_api(raw)
        except ValidationError as error:
            log.warning("engine unreadable key=%s error=%s", key, error)
            return None
        now = self.clock.now()
        uid, checked = self._checked.get(key, ("", 0.0))
        fresh = uid == engine.metadata.uid and now - checked < RECHECK_SECONDS
        wantings = find_wantings(self.observed, engine)
        if is_stored(engine) and tells_nodes(engine) and not find_lacking(engine, wantings) and fresh:
            return None
        view = replace(await self._gather(engine, wantings), unwanted_since=self._note_wanting(key, wantings))  # 1
        if view.stored is not None:
            self._checked[key] = (engine.metadata.uid, now)
            self.memory.forget_build(key.namespace, key.name)
        plan = decide_engine(view, now)  # 2
        writes = make_writes(engine, wantings, plan, self.images)
        applied = await self._apply(engine, plan, writes)  # 3
        if applied.refusal is not None and view.stored is None and not isinstance(applied.refusal, StoreFailed):
            plan = replace(plan, status=say_held_up(view, describe_refusal(applied.refusal, Reason.BUILD_FAILED), now))
        await self._report(engine, raw, plan, applied.done)  # 4
        if applied.failure is not None:
            raise applied.failure
        return plan.check_in

    def _note_wanting(self, key: Key, wantings: tuple[Wanting, ...]) -> float | None:
        """Since when no model wants the engine; None where one does."""
        if not wantings:
            return self._unwanted.setdefault(key, self.clock.now())
        self._unwanted.pop(key, None)
        return None

    async def _apply(self, engine: Engine, plan: EnginePlan, writes: tuple[Write, ...]) -> Applied:
        """The marker before anything that takes the evidence for it away, then the writes."""
        try:
            await self._leave_marker(engine, plan)
        except HotstartError as error:
            return Applied(failure=error)
        return await apply_writes(self.cluster, self.observed, writes)

    async def _gather(self, engine: Engine, wantings: tuple[Wanting, ...]) -> EngineView:
        namespace, name = engine.metadata.namespace, engine.metadata.name
        wanting = next(iter(wantings), None)
        tokenizers = tuple(dict.fromkeys(wanting.tokenizer_digest for wanting in wantings))
        every = gather_build_jobs(self.observed, namespace, name)
        jobs = tuple(job for job in every if not job.bundle)
        asked = {job.pod.uid for job in jobs if job.pod is not None and answers(job.pod) and not job.deleting}
        heard = self.memory.builds.get((namespace, name))
        if heard is not None and heard.report.pod_uid not in asked:
            heard = None  # of an attempt before
        report = None if heard is None else heard.report
        uploaded = (namespace, name) in self.memory.published
        stored, failure, quarantine = None, None, None
        if uploaded or report is None or report.phase is BuildPhase.UPLOADED:
            stored, failure = await self._look_up(engine, tokenizers)
            if stored is None and failure is None:
                quarantine, failure = await self._look_up_quarantine(engine)
        return EngineView(
            engine=engine,
            jobs=jobs,
            stored=stored,
            store_failure=failure,
            report=report,
            heard_at=None if heard is None else heard.at,
            wanted=wanting is not None,
            secret="" if wanting is None else wanting.checkpoint.secret_name or "",
            quarantine=quarantine,
            upload_failure=self.memory.upload_failures.get((namespace, name)),
            fleet=await self._gather_gpus(engine, wanted=wanting is not None and stored is None),
            tokenizers=tokenizers,
            bundle_jobs=tuple(job for job in every if job.bundle),
        )

    async def _gather_gpus(self, engine: Engine, *, wanted: bool) -> GpuFleet | None:
        """The GPUs of the cluster, where the engine has to be built with one."""
        if engine.spec.accelerator is None or not wanted:
            return None
        return await gather_gpus(self.cluster, self.clock, self.observed, self.memory)

    async def _look_up(self, engine: Engine, tokenizers: tuple[str, ...]) -> tuple[StoredEngine | None, Failure | None]:
        """The engine in the store with the bundles of its tokenizers, or why that cannot be told."""
        key, prefix = engine.spec.key, await self._prefix(engine)
        try:
            text = await self.store.get_manifest(prefix)
            if text is None:
                return None, None
            manifest = parse_manifest(text, key=key)
            bundles = await self._look_up_bundles(engine, manifest, tokenizers)
            return StoredEngine(manifest, text, f"{self.store.location}{prefix}", bundles), None
        except StoreFailed as error:
            return None, Failure(error.reason, f"The engine store does not serve: {error}", True)
        except BadManifest as error:
            message = (
                f"{error}. {self.store.location}{prefix} is deleted and the engine built again, once an hour at most."
            )
            return None, Failure(Reason.ENGINE_CORRUPT, message, True)

    async def _look_up_bundles(
        self, engine: Engine, manifest: Manifest, tokenizers: tuple[str, ...]
    ) -> tuple[Bundle, ...]:
        """Bundles that stand, of those that are wanted and then of those that stood."""
        known = (bundle.tokenizer_digest for bundle in engine.status.bundles)
        found = []
        for digest in dict.fromkeys((*tokenizers, *known)):
            if digest in ("", manifest.tokenizer_digest):
                continue
            uid = await namespace_uid(self.cluster, self.memory, engine.metadata.namespace)
            text = await self.store.get_manifest(bundle_prefix(uid, engine.spec.key, digest))
            if text is not None:
                found.append(Bundle(digest, manifest_sha256(text)))
        return tuple(found)

    async def _look_up_quarantine(self, engine: Engine) -> tuple[Quarantine | None, Failure | None]:
        """The marker in the engine's place, or why that cannot be told."""
        prefix = await self._prefix(engine)
        try:
            return parse_quarantine(await self.store.get_quarantine(prefix)), None
        except StoreFailed as error:
            return None, Failure(error.reason, f"The engine store does not serve: {error}", True)

    async def _leave_marker(self, engine: Engine, plan: EnginePlan) -> None:
        if plan.quarantine is not None:
            await self.store.put_quarantine(await self._prefix(engine), plan.quarantine.to_json())
            log.warning("engine quarantined key=%s number=%d", engine.spec.key[:12], plan.quarantine.number)

    async def _prefix(self, engine: Engine) -> str:
        return engine_prefix(await namespace_uid(self.cluster, self.memory, engine.metadata.namespace), engine.spec.key)

    async def _report(self, engine: Engine, raw: dict[str, Any], plan: EnginePlan, done: tuple[Write, ...]) -> None:
        patch = diff_merge(raw.get("status", {}), plan.status.to_api())
        made = [EventNote(False, w.reason, w.message) for w in done if isinstance(w, Create) and w.message]
        await self.events.send(raw, made, self.clock.now())
        notes = note_changes(engine.status.conditions, plan.status.conditions)
        if patch:
            meta = engine.metadata
            changed = await self.cluster.patch_status("Engine", meta.namespace, meta.name, {"status": patch})
            if changed is not None:
                self.observed.put({**changed, "kind": "Engine"})
        await self.events.send(raw, notes, self.clock.now())

    def look_again(self) -> None:
        """The store is to be asked at each engine's next reconcile, however lately it was."""
        self._checked.clear()


def tells_nodes(engine: Engine) -> bool:
    """Whether the Engine's Degraded speaks of the nodes that its annotation names."""
    degraded = find_condition(engine.status.conditions, ConditionType.DEGRADED)
    return degraded is not None and degraded.message == judge_nodes(engine).message


def find_lacking(engine: Engine, wantings: Iterable[Wanting]) -> tuple[Wanting, ...]:
    """The models whose tokenizer does not stand beside this engine, as far as its status knows."""
    return tuple(wanting for wanting in wantings if find_bundle(engine, wanting.tokenizer_digest) is None)


def find_wantings(observed: Observed, engine: Engine) -> tuple[Wanting, ...]:
    """The models by name that want this engine now, managed ones before paused ones."""
    found = []
    for raw in observed.all("CompletionModel", engine.metadata.namespace):
        try:
            model = CompletionModel.from_api(raw)
        except ValidationError:
            log.debug("model unreadable, its own reconcile says so name=%s", raw["metadata"]["name"])
            continue
        wanted = find_wanted_engine(model.spec, model.status.checkpoint)
        if wanted is not None and wanted.refusal is None and wanted.key == engine.spec.key:
            paused = model.spec.management is Management.PAUSED
            serving, limits = make_serving_options(model.spec), replica_limits(model.spec)
            digest = "" if model.status.checkpoint is None else model.status.checkpoint.tokenizer_digest
            found.append(Wanting(digest, model.spec.checkpoint, serving, limits, paused, wanted.size))
    return tuple(sorted(found, key=lambda wanting: wanting.paused))


def make_writes(engine: Engine, wantings: Iterable[Wanting], plan: EnginePlan, images: Images) -> tuple[Write, ...]:
    """The Jobs that are due; those of no further use go. None while the only models that want it are paused."""
    wanting = next(iter(wantings), None)
    if wanting is not None and wanting.paused:
        return ()
    writes: list[Write] = [Delete("Job", job.namespace, job.name, job.uid) for job in plan.obsolete]
    if plan.start is not None and wanting is not None:
        checkpoint, serving = wanting.checkpoint, wanting.serving
        size = None if wanting.size is None else wanting.size.after(plan.killed)
        digest = wanting.tokenizer_digest
        body = make_build_job(
            engine, checkpoint, serving, images, attempt=plan.start, size=size, tokenizer_digest=digest
        )
        body = with_calibrator(body, engine.spec.runtime, wanting.limits)
        message = f"Building engine {engine.metadata.name[:12]} (attempt {plan.start + 1})."
        writes.append(Create(body, Reason.ENGINE_BUILDING, message))
    return (*writes, *make_bundle_writes(engine, wantings, plan, images))


def make_bundle_writes(
    engine: Engine, wantings: Iterable[Wanting], plan: EnginePlan, images: Images
) -> Iterator[Write]:
    """The Jobs that are due for further tokenizers."""
    for digest, attempt in plan.bundles.items():
        model = next((w for w in wantings if w.tokenizer_digest == digest and not w.paused), None)
        if model is not None:
            body = make_bundle_job(
                engine, model.checkpoint, model.serving, images, attempt=attempt, tokenizer_digest=digest
            )
            message = f"Making the files of tokenizer {digest[:12]} for engine {engine.metadata.name[:12]}."
            yield Create(body, Reason.ENGINE_BUILDING, message)


async def namespace_uid(cluster: Cluster, memory: Memory, namespace: str) -> str:
    """The namespace's UID, under which its engines stand in the store.

    Raises:
        HotstartError: the API server does not tell.
    """
    if namespace not in memory.namespaces:
        found = await cluster.get("Namespace", "", namespace)
        if found is None:
            raise HotstartError(f"namespace {namespace} is gone")
        memory.namespaces[namespace] = found["metadata"]["uid"]
    return memory.namespaces[namespace]
