"""The whole decision about one CompletionModel: from what was gathered to writes, status and events. Pure.

The order is that of the flow: checkpoint, engine, target, pods, what stands beside them, status. While a new revision
cannot become ready, the previous one serves on: its pods stay, and are replaced where the spec still describes them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hotstart.engines.key import engine_name
from hotstart.exchange.names import (
    API_VERSION,
    LABEL_MANAGED_BY,
    LABEL_ROLE,
    MANAGED_BY,
    ROLE_DRAINING,
)
from hotstart.operator.api import CompletionModel, Engine, Reason
from hotstart.operator.api import Recipe as ApiRecipe
from hotstart.operator.api.engine import EngineSpec
from hotstart.operator.api.model_spec import Management
from hotstart.operator.api.status import CheckpointStatus, Decision
from hotstart.operator.core.accelerators import (
    GpuNeed,
    GpuVerdict,
    decide_accelerator,
    explain_unschedulable,
    make_gpu_need,
)
from hotstart.operator.core.build import GPU_LOOK_SECONDS
from hotstart.operator.core.bundles import decide_bundle, find_bundle, list_bundles
from hotstart.operator.core.checkpoint import Inspection, decide_inspection
from hotstart.operator.core.crashes import CrashRecord, recall_crashes, record_crashes
from hotstart.operator.core.diff import covers
from hotstart.operator.core.engine_status import is_stored
from hotstart.operator.core.facts import JobFacts, PodFacts
from hotstart.operator.core.gpu_fleet import GpuFleet
from hotstart.operator.core.job_manifests import make_inspect_job
from hotstart.operator.core.jobs import Failure, read_failure
from hotstart.operator.core.names import ANNOTATION_DRAINING_SINCE
from hotstart.operator.core.pod_manifest import copy_pod, make_pod
from hotstart.operator.core.pod_states import is_serving, silent_at
from hotstart.operator.core.previous import copy_target
from hotstart.operator.core.quarantine import avoided_nodes, write_quarantined_nodes
from hotstart.operator.core.recipe import WantedEngine, decide_wanted_engine, find_wanted_engine
from hotstart.operator.core.revision import Bundle, Images, Target, make_assignment, make_target
from hotstart.operator.core.scale import ScaleDecision
from hotstart.operator.core.service_manifests import make_disruption_budget, make_keys_config, make_service
from hotstart.operator.core.verdicts import RouterFacts
from hotstart.operator.core.window import Window
from hotstart.operator.core.workload import (
    CreatePod,
    DeletePod,
    RetirePod,
    Step,
    WorkloadPlan,
    WorkloadView,
    decide_workload,
)
from hotstart.operator.core.writes import Apply, Create, Delete, Object, Patch, Write

ANNOTATION_REQUESTED_BY = "hotstart.dev/requested-by"  # UID of the model that an Engine was made for


@dataclass(frozen=True)
class ModelView:
    """All that is known of one model when it is decided about."""

    model: CompletionModel
    images: Images
    now: float
    pods: tuple[PodFacts, ...] = ()
    inspect_jobs: tuple[JobFacts, ...] = ()
    build_jobs: Mapping[str, tuple[JobFacts, ...]] = field(default_factory=dict)  # by name of the Engine
    engines: tuple[Engine, ...] = ()  # of the namespace
    beside: tuple[Object, ...] = ()  # Service, PodDisruptionBudget, ConfigMap that stand
    requested: frozenset[str] = frozenset()  # Engines that were made for this model
    jwks: str = ""
    cordoned: frozenset[str] = frozenset()
    out_of_routes: frozenset[str] = frozenset()
    routers: RouterFacts = field(default_factory=RouterFacts)
    window: Window = field(default_factory=Window)
    decision: ScaleDecision | None = None
    decisions: tuple[Decision, ...] = ()
    crashes: Mapping[str, CrashRecord] = field(default_factory=dict)  # by revision
    fleet: GpuFleet | None = None  # None where nobody looked for GPUs

    @property
    def need(self) -> GpuNeed | None:
        """The GPUs that a build, and each replica, needs; None for engines of CPUs."""
        return make_gpu_need(self.model.spec.engine.accelerator, self.model.spec.engine.tensor_parallel)

    @property
    def gpus(self) -> GpuVerdict | None:
        """Why no GPU can be had now; None where one can, none is needed, or nobody looked."""
        need = self.need
        return None if need is None or self.fleet is None else decide_accelerator(need, self.fleet)


@dataclass(frozen=True)
class Progress:
    """How far the model is: checkpoint, engine, target."""

    inspection: Inspection
    checkpoint: CheckpointStatus | None
    wanted: WantedEngine | None
    engine: Engine | None
    failure: Failure | None
    target: Target | None  # what pods are made from now
    desired: bool  # whether the target is what the spec wants, and not the previous revision


@dataclass(frozen=True)
class ModelPlan:
    """The decision. ``crashes`` is to be remembered; ``check_in`` is in seconds."""

    progress: Progress
    workload: WorkloadPlan
    writes: tuple[Write, ...]
    crashes: Mapping[str, CrashRecord]
    check_in: float | None
    refusal: Failure | None = None  # what the API server said to a write


def decide_model(view: ModelView) -> ModelPlan:
    """Writes in the order in which they are to be made; none while management is Paused."""
    progress = decide_progress(view)
    revision = "" if progress.target is None else progress.target.revision
    known = recall_crashes(revision, view.model.status, view.pods, view.crashes)
    record = record_crashes(known, view.pods, revision, view.now)
    workload = decide_workload(
        WorkloadView(
            pods=view.pods,
            target=progress.target,
            replicas=view.model.spec.replicas,
            max_surge=view.model.spec.rollout.max_surge,
            crashes=record,
            cordoned=view.cordoned,
            out_of_routes=view.out_of_routes,
            now=view.now,
        )
    )
    crashes = {revision: record} if revision else {}
    paused = view.model.spec.management is Management.PAUSED
    writes = (
        ()
        if paused
        else (
            *write_beside(view),
            *write_inspection(view, progress),
            *write_engine(view, progress),
            *write_quarantined_nodes(view.engines, view.pods),  # before the pods that tell of it go
            *write_pods(view, progress, workload),
        )
    )
    waits = [GPU_LOOK_SECONDS for pod in view.pods if explain_unschedulable(pod.trouble, view.gpus) is not None]
    waits += [at - view.now for at in silences(view) if at > view.now]
    checks = [seconds for seconds in (progress.inspection.check_in, workload.check_in, *waits) if seconds is not None]
    return ModelPlan(progress, workload, writes, crashes, min(checks, default=None))


def silences(view: ModelView) -> tuple[float, ...]:
    """When each pod that does not serve is unreachable, if its agent stays silent."""
    found = (silent_at(pod, pod.report_at) for pod in view.pods if not is_serving(pod, view.now))
    return tuple(at for at in found if at is not None)


def decide_progress(view: ModelView) -> Progress:
    """Checkpoint, engine and target, each from the one before."""
    model = view.model
    inspection = decide_inspection(model, view.inspect_jobs, not_before=find_changed(view), now=view.now)
    checkpoint = inspection.checkpoint
    if checkpoint is None:
        pinned = model.status.checkpoint
        return Progress(inspection, pinned, None, None, inspection.failure, find_previous(view), False)
    wanted = decide_wanted_engine(model.spec, checkpoint)
    if isinstance(wanted, Failure):
        return Progress(inspection, checkpoint, None, None, wanted, find_previous(view), False)
    engine = next((engine for engine in view.engines if engine.metadata.name == wanted.name), None)
    if engine is None or not is_stored(engine):
        return Progress(inspection, checkpoint, wanted, engine, wanted.refusal, find_previous(view), False)
    bundle = find_bundle(engine, checkpoint.tokenizer_digest)
    if bundle is None:
        failure = describe_bundle(view, engine, checkpoint)
        return Progress(inspection, checkpoint, wanted, engine, failure, find_previous(view), False)
    return Progress(inspection, checkpoint, wanted, engine, None, target_of(view, engine, bundle), True)


def describe_bundle(view: ModelView, engine: Engine, checkpoint: CheckpointStatus) -> Failure:
    """How far the files of a tokenizer are that does not stand beside its engine yet."""
    jobs, secret = view.build_jobs.get(engine.metadata.name, ()), view.model.spec.checkpoint.secret_name or ""
    return decide_bundle(jobs, checkpoint.tokenizer_digest, secret=secret, now=view.now).failure


def target_of(view: ModelView, engine: Engine, bundle: Bundle) -> Target:
    """The target that serves this engine, with this tokenizer, with the spec as it stands."""
    target = make_target(
        view.model.spec,
        engine_key=engine.spec.key,
        engine_name=engine.metadata.name,
        manifest_sha256=engine.status.manifest_digest,
        bundle=bundle,
    )
    return replace(target, avoid=avoided_nodes(engine, view.pods))


def find_previous(view: ModelView) -> Target | None:
    """The previous revision, which is kept at its number of replicas while the new one is not ready.

    Its pods stand, or served last; of several it is the one of which most pods serve. Where more than engine or
    tokenizer differs from what is wanted, its pods are copied.
    """
    revisions = {pod.revision for pod in view.pods if not pod.deleting and pod.role != ROLE_DRAINING}
    if view.model.status.engine is not None:
        revisions.add(view.model.status.engine.revision)
    targets = (
        target_of(view, engine, bundle)
        for engine in view.engines
        if is_stored(engine)
        for bundle in list_bundles(engine)
    )
    served = "" if view.model.status.engine is None else view.model.status.engine.revision
    serving = Counter(pod.revision for pod in view.pods if is_serving(pod, view.now))
    previous = max(
        (target for target in targets if target.revision in revisions),
        key=lambda target: (serving[target.revision], target.revision == served),
        default=None,
    )
    return previous or copy_target(view.pods, view.engines, served, view.now)


def find_changed(view: ModelView) -> float:
    """When a builder found that the pinned checkpoint had changed in the store (seconds since the epoch), else 0."""
    pinned = view.model.status.checkpoint
    wanted = find_wanted_engine(view.model.spec, pinned)
    if wanted is None:
        return 0.0
    found = 0.0
    for job in view.build_jobs.get(wanted.name, ()):
        ended = None if job.pod is None else job.pod.exit
        failure = None if ended is None else read_failure(ended.message)
        if ended is not None and failure is not None and failure.reason == Reason.CHECKPOINT_CHANGED:
            found = max(found, ended.finished or job.created)
    return found


def write_beside(view: ModelView) -> tuple[Write, ...]:
    """Public keys, Service and PodDisruptionBudget, where they are not as wanted."""
    model = view.model
    wanted = (
        make_keys_config(model.metadata.namespace, view.jwks),
        make_service(model),
        make_disruption_budget(model, model.spec.replicas),
    )
    standing = {(obj["kind"], obj["metadata"]["name"]): obj for obj in view.beside}
    return tuple(
        Apply(body) for body in wanted if not covers(standing.get((body["kind"], body["metadata"]["name"])), body)
    )


def write_inspection(view: ModelView, progress: Progress) -> tuple[Write, ...]:
    """The inspect Job that is due; finished ones of no further use go."""
    inspection = progress.inspection
    writes: list[Write] = [Delete("Job", job.namespace, job.name, job.uid) for job in inspection.obsolete]
    if inspection.start is not None:
        body = make_inspect_job(view.model, view.images, attempt=inspection.start)
        message = f"Inspecting checkpoint {view.model.spec.checkpoint.uri} (attempt {inspection.start + 1})."
        writes.append(Create(body, Reason.CHECKPOINT_INSPECTING, message))
    return tuple(writes)


def write_engine(view: ModelView, progress: Progress) -> tuple[Write, ...]:
    """The Engine object, where none stands and it may be built. It belongs to no single model: several may use it."""
    wanted, checkpoint = progress.wanted, progress.checkpoint
    if wanted is None or checkpoint is None or progress.engine is not None or wanted.refusal is not None:
        return ()
    model = view.model
    spec = EngineSpec(
        key=wanted.key,
        runtime=model.spec.engine.runtime,
        checkpoint=model.spec.checkpoint,
        checkpoint_digest=checkpoint.digest,
        tokenizer_digest=checkpoint.tokenizer_digest,
        recipe=ApiRecipe.from_engine_recipe(wanted.recipe),
        accelerator=model.spec.engine.accelerator,
    )
    body: dict[str, Any] = {
        "apiVersion": API_VERSION,
        "kind": "Engine",
        "metadata": {
            "name": engine_name(wanted.key),
            "namespace": model.metadata.namespace,
            "labels": {LABEL_MANAGED_BY: MANAGED_BY},
            "annotations": {ANNOTATION_REQUESTED_BY: model.metadata.uid},
        },
        "spec": spec.to_api(),
    }
    return (Create(body),)


def write_pods(view: ModelView, progress: Progress, workload: WorkloadPlan) -> tuple[Write, ...]:
    """The steps of the workload as writes."""
    return tuple(write_step(view, progress, step) for step in workload.steps)


def write_pod(view: ModelView, target: Target, *, slot: int, attempt: int) -> dict[str, Any]:
    """One more pod of the target."""
    model = view.model
    if target.template is not None:
        return copy_pod(model, target, target.template, slot=slot, attempt=attempt, now=view.now)
    name, generation = f"{model.metadata.namespace}/{model.metadata.name}", max(1, model.metadata.generation)
    assignment = make_assignment(model.spec, target, model=name, generation=generation)
    return make_pod(model, target, assignment, view.images, slot=slot, attempt=attempt, now=view.now)


def write_step(view: ModelView, progress: Progress, step: Step) -> Write:
    """One step as a write."""
    match step:
        case CreatePod(slot=slot, attempt=attempt):
            target = progress.target
            assert target is not None, "pods are created of a target"
            body = write_pod(view, target, slot=slot, attempt=attempt)
            message = f"Created pod {body['metadata']['name']} of revision {target.revision[:8]}."
            return Create(body, Reason.POD_CREATED, message)
        case RetirePod(pod=pod, reason=reason, message=message):
            change = {
                "metadata": {
                    "labels": {LABEL_ROLE: ROLE_DRAINING},
                    "annotations": {ANNOTATION_DRAINING_SINCE: f"{view.now:.3f}"},
                }
            }
            return Patch("Pod", pod.namespace, pod.name, change, reason, message)
        case DeletePod(pod=pod, reason=reason, message=message):
            return Delete("Pod", pod.namespace, pod.name, pod.uid, reason, message)
