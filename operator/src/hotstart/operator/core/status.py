"""The status of a CompletionModel: made from the decision, in 4 KiB, written only when it says more. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from hotstart.operator.api import (
    CompletionModel,
    CompletionModelStatus,
    ConditionType,
    Duration,
    Engine,
)
from hotstart.operator.api.engine import ProfileStatus
from hotstart.operator.api.status import Decision, EngineReference, LatencyStatus
from hotstart.operator.core.capacity import decide_capacity
from hotstart.operator.core.cold_start import measure_cold_start
from hotstart.operator.core.conditions import Verdict, failed_verdict, make_conditions, ready_verdict
from hotstart.operator.core.crashes import CrashRecord
from hotstart.operator.core.facts import PodFacts
from hotstart.operator.core.model import ModelPlan, ModelView
from hotstart.operator.core.plan import UNFINISHED, PlanView, make_plan
from hotstart.operator.core.pod_states import is_serving
from hotstart.operator.core.scale import ScaleDecision
from hotstart.operator.core.service_manifests import selector_text
from hotstart.operator.core.status_size import bound_status
from hotstart.operator.core.verdicts import (
    RouterFacts,
    judge_attainable,
    judge_endpoint,
    judge_engine,
    judge_health,
    judge_metrics,
    judge_progress,
    judge_scaling,
    judge_slo,
    judge_workload,
    step,
)
from hotstart.operator.core.window import Latency, Window, measure_latency

LATENCY_WINDOW_SECONDS = 60
WRITE_EVERY_SECONDS = 30.0

#: Conditions whose message follows the traffic: a new message alone is no reason to write.
VOLATILE = frozenset({ConditionType.SLO_MET, ConditionType.SCALING_ACTIVE})


def make_status(view: ModelView, plan: ModelPlan) -> CompletionModelStatus:
    """The status that the decision leaves behind."""
    old, model, progress = view.model.status, view.model, plan.progress
    latency = measure_latency(view.window.last(LATENCY_WINDOW_SECONDS, view.now), model.spec.slo.percentile)
    live = [pod for pod in view.pods if not pod.deleting and pod.role != "draining"]
    serving = [pod for pod in live if is_serving(pod, view.now)]
    generation = model.metadata.generation
    changed = generation != old.observed_generation or progress.wanted is None or not old.plan
    target = progress.target
    status = CompletionModelStatus(
        observed_generation=generation,
        conditions=make_conditions(
            judge_all(view, plan, latency, len(serving)), old.conditions, generation=generation, now=view.now
        ),
        replicas=len(live),
        ready_replicas=len(serving),
        selector=selector_text(model.metadata.name),
        revision=target.revision if target is not None else old.revision,
        plan=describe_plan(view, plan) if changed or old.plan.startswith(UNFINISHED) else old.plan,
        engine=serving_engine(view, plan, serving),
        checkpoint=progress.checkpoint,
        latency=make_latency(view, latency),
        decisions=view.decisions[:10],
        cold_start=measure_cold_start(live, old.cold_start),
        builds=max(old.builds, count_builds(view)),
    )
    return bound_status(status)


def describe_plan(view: ModelView, plan: ModelPlan) -> str:
    """The plan's text."""
    progress = plan.progress
    return make_plan(
        PlanView(
            wanted=progress.wanted,
            checkpoint=progress.checkpoint,
            failure=progress.failure,
            engine=progress.engine,
            target=progress.target if progress.desired else None,
            pods=view.pods,
            engines=view.engines,
            need=view.need,
            fleet=view.fleet,
        )
    )


def judge_all(view: ModelView, plan: ModelPlan, latency: Latency, serving: int) -> tuple[Verdict, ...]:
    """All verdicts, Ready first."""
    model, progress = view.model, plan.progress
    record = plan.crashes.get(progress.target.revision, CrashRecord()) if progress.target else CrashRecord()
    inspecting = progress.inspection.checkpoint is None and progress.failure is None
    engine = judge_engine(progress.wanted, progress.engine, progress.failure, inspecting=inspecting)
    live = tuple(pod for pod in view.pods if pod.role != "draining")
    workload = judge_workload(model, live, record, progress.target, view.now, view.gpus)
    if plan.refusal is not None and workload.holds is not True:
        workload = failed_verdict(ConditionType.WORKLOAD_READY, plan.refusal)
    health = judge_health(record, progress.target)
    if plan.refusal is not None and health.holds is not True:
        health = Verdict(ConditionType.DEGRADED, True, plan.refusal.reason, plan.refusal.message)
    endpoint = judge_endpoint(model, serving, view.routers)
    desired = progress.target if progress.desired else None
    parts = (engine, workload, endpoint)
    return (
        ready_verdict(parts),
        *parts,
        judge_slo(model, latency),
        judge_attainable(model, decide_capacity(model.spec, serving_profile(view, plan))),
        judge_scaling(model, view.decision),
        judge_metrics(view.window, view.routers, view.now),
        judge_progress(
            model,
            engine,
            workload,
            live,
            desired,
            view.now,
            made=progress.engine,
            cordoned=view.cordoned,
            gpus=view.gpus,
        ),
        health,
    )


def serving_profile(view: ModelView, plan: ModelPlan) -> ProfileStatus | None:
    """What calibration measured of the engine that replicas are made with, or are to be."""
    progress = plan.progress
    target = progress.target
    engine = progress.engine if target is None else find_engine(view.engines, target.engine_name)
    return None if engine is None else engine.status.profile


def serving_engine(view: ModelView, plan: ModelPlan, serving: list[PodFacts]) -> EngineReference | None:
    """The engine that serves; before any does, the one that is wanted."""
    progress = plan.progress
    target = progress.target
    served = {pod.engine: pod.revision for pod in serving}
    if served and (target is None or target.engine_name not in served):
        name = view.model.status.engine.name if view.model.status.engine else ""
        name = name if name in served else sorted(served)[0]
        engine = find_engine(view.engines, name)
        key = "" if engine is None else engine.spec.key
        return EngineReference(name=name, key=key, revision=served[name])
    if target is not None:
        return EngineReference(name=target.engine_name, key=target.engine_key, revision=target.revision)
    if progress.wanted is not None:
        return EngineReference(name=progress.wanted.name, key=progress.wanted.key)
    return view.model.status.engine


def find_engine(engines: tuple[Engine, ...], name: str) -> Engine | None:
    """The Engine of that name."""
    return next((engine for engine in engines if engine.metadata.name == name), None)


def make_latency(view: ModelView, latency: Latency) -> LatencyStatus:
    """The percentile in steps of 10 ms."""
    slo = view.model.spec.slo
    return LatencyStatus(
        percentile=slo.percentile,
        value=None if latency.value is None else Duration(f"{step(latency.value)}ms"),
        window=Duration(f"{LATENCY_WINDOW_SECONDS}s"),
        slo=slo.latency,
    )


def count_builds(view: ModelView) -> int:
    """Build Jobs of the Engines that were made for this model."""
    return sum(engine.status.attempts for engine in view.engines if engine.metadata.name in view.requested)


def to_decision(decision: ScaleDecision, before: int, now: float) -> Decision:
    """A scaling decision as status shows it."""
    return Decision(
        time=datetime.fromtimestamp(int(now), UTC),
        from_replicas=before,
        to_replicas=decision.replicas,
        reason=str(decision.reason),
        message=decision.message[:1024],
        inputs=dict(decision.inputs),
    )


def is_outdated(model: CompletionModel, window: Window, routers: RouterFacts, now: float) -> bool:
    """Whether a condition that follows the traffic stands otherwise than the last seconds say."""
    latency = measure_latency(window.last(LATENCY_WINDOW_SECONDS, now), model.spec.slo.percentile)
    verdicts = (judge_slo(model, latency), judge_metrics(window, routers, now))
    standing = {condition.type: condition.reason for condition in model.status.conditions}
    return any(standing.get(verdict.type) != verdict.reason for verdict in verdicts)


def is_due(old: CompletionModelStatus, new: CompletionModelStatus, *, since: float) -> bool:
    """Whether to write: at once where a condition or a count changed, else at most every 30 s.

    ``since`` is the seconds since the last write.
    """
    if old == new:
        return False
    return significant(old) != significant(new) or since >= WRITE_EVERY_SECONDS


def significant(status: CompletionModelStatus) -> dict[str, Any]:
    """The status without what follows the traffic from second to second."""
    plain = status.to_api()
    plain.pop("latency", None)
    for condition in plain.get("conditions", ()):
        if condition["type"] in VOLATILE:
            condition.pop("message", None)
    return plain
