"""Reconciles one CompletionModel: 1 gather, 2 decide, 3 apply, 4 report."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from hotstart.operator.api import CompletionModel, ConditionStatus, ConditionType, Engine, Reason
from hotstart.operator.core.capacity import Capacity, decide_capacity
from hotstart.operator.core.conditions import find_condition
from hotstart.operator.core.diff import diff_merge
from hotstart.operator.core.errors import Forbidden, HotstartError
from hotstart.operator.core.events import EventNote, note_changes
from hotstart.operator.core.facts import JobFacts, PodFacts, make_job_facts, make_pod_facts
from hotstart.operator.core.gpu_fleet import GpuFleet
from hotstart.operator.core.invalid import report_invalid
from hotstart.operator.core.jobs import Failure
from hotstart.operator.core.model import ANNOTATION_REQUESTED_BY, ModelPlan, ModelView, decide_model
from hotstart.operator.core.revision import Images
from hotstart.operator.core.status import is_due, make_status
from hotstart.operator.core.writes import Apply, Create, Delete, Patch, Write
from hotstart.operator.reconcile.apply import Applied, apply_writes
from hotstart.operator.reconcile.gpus import gather_gpus
from hotstart.operator.reconcile.memory import Heard, Memory
from hotstart.operator.reconcile.observed import Key, Observed
from hotstart.operator.reconcile.ports import Clock, Cluster, Events
from pydantic import ValidationError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelReconciler:
    """One a process; all that it remembers is in ``memory``."""

    cluster: Cluster
    events: Events
    clock: Clock
    observed: Observed
    memory: Memory
    images: Images
    jwks: str

    async def reconcile(self, key: Key) -> float | None:
        """Brings the model nearer to its spec; returns the seconds until another look is due."""
        raw = self.observed.get("CompletionModel", key.namespace, key.name)
        if raw is None or raw["metadata"].get("deletionTimestamp"):
            self.memory.models.pop((key.namespace, key.name), None)
            return None
        try:
            model = CompletionModel.from_api(raw)
        except ValidationError as error:
            await self._report_invalid(raw, error)
            return None
        fleet = await self._gather_gpus(model)
        view = self._gather(model, raw, fleet)  # 1
        plan = decide_model(view)  # 2
        self._remember(model, plan)
        applied = await apply_writes(self.cluster, self.observed, plan.writes)  # 3
        view = self._gather(model, raw, fleet)
        await self._report(view, plan, raw, applied)  # 4
        if applied.failure is not None:
            raise applied.failure
        return 0.0 if needs_another_look(applied.done) else plan.check_in

    async def _gather_gpus(self, model: CompletionModel) -> GpuFleet | None:
        """The GPUs of the cluster, where a model needs some and is not as it should be."""
        ready = find_condition(model.status.conditions, ConditionType.READY)
        settled = ready is not None and ready.status is ConditionStatus.TRUE
        current = model.status.observed_generation == model.metadata.generation
        if model.spec.engine.accelerator is None or (settled and current):
            return None
        return await gather_gpus(self.cluster, self.clock, self.observed, self.memory)

    def _gather(self, model: CompletionModel, raw: dict[str, Any], fleet: GpuFleet | None) -> ModelView:
        """All that is known of the model, from the observed objects and from memory."""
        namespace, name = model.metadata.namespace, model.metadata.name
        memory = self.memory.of(namespace, name, model.metadata.uid)
        if memory.decisions is None:
            memory.decisions = model.status.decisions
        pods = self.observed.all("Pod", namespace)
        engines = gather_engines(self.observed, namespace)
        return ModelView(
            model=model,
            images=self.images,
            now=self.clock.now(),
            pods=gather_pods(self.observed.owned("Pod", namespace, "CompletionModel", name), self.memory.reports),
            inspect_jobs=tuple(
                make_job_facts(job, pods) for job in self.observed.owned("Job", namespace, "CompletionModel", name)
            ),
            build_jobs={
                engine.metadata.name: gather_build_jobs(self.observed, namespace, engine.metadata.name)
                for engine in engines
            },
            engines=engines,
            beside=self._gather_beside(namespace, name),
            requested=frozenset(
                engine.metadata.name
                for engine in engines
                if engine.metadata.annotations.get(ANNOTATION_REQUESTED_BY) == model.metadata.uid
            ),
            jwks=self.jwks,
            cordoned=frozenset(
                node["metadata"]["name"]
                for node in self.observed.all("Node")
                if node.get("spec", {}).get("unschedulable")
            ),
            out_of_routes=frozenset(self.memory.out_of_routes),
            routers=self.memory.router_facts(namespace, name),
            window=memory.window,
            decision=memory.decision,
            decisions=memory.decisions,
            crashes=memory.crashes,
            fleet=fleet,
        )

    def _gather_beside(self, namespace: str, name: str) -> tuple[dict[str, Any], ...]:
        owned = (
            obj
            for kind in ("Service", "PodDisruptionBudget")
            for obj in self.observed.owned(kind, namespace, "CompletionModel", name)
        )
        return (*owned, *self.observed.all("ConfigMap", namespace))

    def _remember(self, model: CompletionModel, plan: ModelPlan) -> None:
        memory = self.memory.of(model.metadata.namespace, model.metadata.name, model.metadata.uid)
        memory.crashes = plan.crashes

    async def _report(self, view: ModelView, plan: ModelPlan, raw: dict[str, Any], applied: Applied) -> None:
        """Events about what was done, status where it is due, and events about what changed."""
        model, now = view.model, view.now
        memory = self.memory.of(model.metadata.namespace, model.metadata.name, model.metadata.uid)
        await self.events.send(raw, notes_of(applied.done), now)
        if applied.refusal is not None:
            plan = with_refusal(plan, applied.refusal)
        status = make_status(view, plan)
        notes = note_changes(model.status.conditions, status.conditions)
        if is_due(model.status, status, since=now - memory.written_at):
            patch = diff_merge(raw.get("status", {}), status.to_api())
            changed = await self.cluster.patch_status(
                "CompletionModel", model.metadata.namespace, model.metadata.name, {"status": patch}
            )
            if changed is not None:
                self.observed.put({**changed, "kind": "CompletionModel"})
            memory.written_at = now
        await self.events.send(raw, notes, now)

    async def _report_invalid(self, raw: dict[str, Any], error: ValidationError) -> None:
        """An object that another version of the CRD let through: said in status, and nothing else is touched."""
        patch = report_invalid(raw, error.errors(), self.clock.now())
        if patch:
            meta = raw["metadata"]
            changed = await self.cluster.patch_status(
                "CompletionModel", meta["namespace"], meta["name"], {"status": patch}
            )
            if changed is not None:
                self.observed.put({**changed, "kind": "CompletionModel"})


def with_refusal(plan: ModelPlan, error: HotstartError) -> ModelPlan:
    """The plan with the API server's refusal as what is wrong."""
    failure = describe_refusal(error, Reason.POD_CREATE_FAILED)
    if plan.progress.target is not None:
        return replace(plan, refusal=failure)
    return replace(plan, progress=replace(plan.progress, failure=failure))


def describe_refusal(error: HotstartError, fallback: Reason) -> Failure:
    """Why the API server did not take a write; ``fallback`` is the reason where it gives none of its own."""
    reason = error.reason if isinstance(error, Forbidden) else fallback
    return Failure(reason, f"The API server does not take what Hotstart writes: {error}", True)


def needs_another_look(done: Iterable[Write]) -> bool:
    """Whether a write may at once make another one due: a retired pod makes room."""
    return any(isinstance(write, Patch | Delete) for write in done)


def notes_of(done: Iterable[Write]) -> list[EventNote]:
    """Events about writes that say something."""
    return [
        EventNote(write.reason in WARNINGS, write.reason, write.message)
        for write in done
        if not isinstance(write, Apply) and isinstance(write, Create | Patch | Delete) and write.message
    ]


WARNINGS = frozenset(
    {
        Reason.PODS_CRASHING,
        Reason.ENGINE_CORRUPT,
        Reason.ENGINE_FETCH_FAILED,
        Reason.ENGINE_LOAD_FAILED,
        Reason.WARM_UP_FAILED,
        Reason.VERIFICATION_FAILED,
    }
)


def gather_pods(pods: Iterable[dict[str, Any]], reports: dict[str, Heard]) -> tuple[PodFacts, ...]:
    """The facts of pods with the last reports of their agents."""
    found = []
    for pod in pods:
        heard = reports.get(pod["metadata"].get("uid", ""))
        said = (None, None, None) if heard is None else (heard.report, heard.at, heard.failed_since)
        found.append(make_pod_facts(pod, *said))
    return tuple(found)


def gather_engines(observed: Observed, namespace: str) -> tuple[Engine, ...]:
    """The Engines of a namespace; one that cannot be read is left out, for its own reconcile says so."""
    engines = []
    for raw in observed.all("Engine", namespace):
        try:
            engines.append(Engine.from_api(raw))
        except ValidationError as error:
            log.warning("engine unreadable namespace=%s name=%s error=%s", namespace, raw["metadata"]["name"], error)
    return tuple(engines)


def gather_capacity(observed: Observed, model: CompletionModel) -> Capacity:
    """What a replica of the model holds, by the profile of the engine that its status names."""
    reference = model.status.engine
    name = "" if reference is None else reference.name
    raw = observed.get("Engine", model.metadata.namespace, name) if name else None
    try:
        engine = None if raw is None else Engine.from_api(raw)
    except ValidationError as error:
        log.warning("engine unreadable namespace=%s name=%s error=%s", model.metadata.namespace, name, error)
        engine = None
    return decide_capacity(model.spec, None if engine is None else engine.status.profile)


def gather_build_jobs(observed: Observed, namespace: str, engine: str) -> tuple[JobFacts, ...]:
    """The build Jobs of an Engine."""
    pods = observed.all("Pod", namespace)
    return tuple(make_job_facts(job, pods) for job in observed.owned("Job", namespace, "Engine", engine))
