"""The engine of one key: does it stand in the store, and if not, which build Job is due? Pure.

An Engine's name is its key, so two models that need one engine meet in one object and one build.
"""

from __future__ import annotations

from dataclasses import replace

from hotstart.exchange.messages import BuildPhase
from hotstart.exchange.names import STEP_CONVERT
from hotstart.operator.api import ConditionType, EngineStatus, Reason
from hotstart.operator.api.engine import EnginePhase
from hotstart.operator.core.accelerators import (
    GpuVerdict,
    decide_accelerator,
    explain_unschedulable,
    make_gpu_need,
)
from hotstart.operator.core.backoff import BUILD_KILLED, INSPECT_TERMINAL, JOB_RETRYABLE
from hotstart.operator.core.conditions import Verdict, find_condition, make_conditions
from hotstart.operator.core.engine_status import (
    MENDED_IN_PLACE,
    find_final_failure,
    is_stored,
    judge_nodes,
    report_failure,
)
from hotstart.operator.core.engine_view import EnginePlan, EngineView
from hotstart.operator.core.facts import JobFacts
from hotstart.operator.core.jobs import (
    Failed,
    Failure,
    Running,
    Succeeded,
    count_killed,
    decide_outcome,
    find_obsolete,
    newest_job,
    with_tail,
)
from hotstart.operator.core.pod_states import describe_silence, is_silent
from hotstart.operator.core.quarantine import (
    Quarantine,
    describe_quarantine,
    find_later_jobs,
    is_lifted,
    make_quarantine,
)
from hotstart.operator.core.stored import decide_stored

STORE_LOOK_SECONDS = 5.0  # a store that does not tell is asked again so often
UNWANTED_SECONDS = 60.0  # a checkpoint that is inspected anew wants no engine for a while
BUSY_SECONDS = 45.0  # a builder that was heard before may be too busy to answer for so long
GPU_LOOK_SECONDS = 10.0  # nodes are compared again so often while none will do
CONVERTING = "The checkpoint is being converted, without a GPU."


def decide_engine(view: EngineView, now: float) -> EnginePlan:
    """The first case that applies, in the order of certainty: stored, store silent, quarantined, under way, ...

    The Jobs that led to a quarantine count no longer once that is lifted.
    """
    if view.stored is not None:
        return decide_stored(view, view.stored, now)
    if view.store_failure is not None:
        return decide_unknown(view, view.store_failure, now)
    quarantine = view.quarantine
    if quarantine is not None and not is_lifted(quarantine, view.engine):
        return decide_quarantined(view, quarantine, now)
    standing = view.jobs if quarantine is None else find_later_jobs(quarantine, view.jobs)
    last = newest_job(job for job in standing if not job.deleting)
    if last is None:
        return decide_missing(view, now)
    outcome = decide_outcome(
        last, secret=view.secret, fallback=Reason.BUILD_FAILED, what="the build of the engine", now=now
    )
    if isinstance(outcome, Running):
        return decide_building(view, last, outcome, now)
    if isinstance(outcome, Failed):
        return decide_failed(view, last, outcome.failure, now)
    return decide_lost(view, last, outcome, now)


def decide_unknown(view: EngineView, failure: Failure, now: float) -> EnginePlan:
    """The store does not tell, or its manifest is malformed: nothing is built meanwhile.

    Of an engine that stood when the store last answered all that is known stays, and so does who serves it.
    """
    old, generation = view.engine.status, view.engine.metadata.generation
    ready = find_condition(old.conditions, ConditionType.READY)
    if ready is None or not is_stored(view.engine) or failure.reason == Reason.ENGINE_CORRUPT:
        verdicts = report_failure(failure, progressing=True)
        return EnginePlan(make_engine_status(view, verdicts, now, phase=None), check_in=STORE_LOOK_SECONDS)
    message = f"{failure.message} {judge_nodes(view.engine).message}".rstrip()
    verdicts = (
        Verdict(ConditionType.READY, True, ready.reason, ready.message),
        Verdict(ConditionType.PROGRESSING, False, Reason.UP_TO_DATE, ""),
        Verdict(ConditionType.DEGRADED, True, failure.reason, message),
    )
    conditions = make_conditions(verdicts, old.conditions, generation=generation, now=now)
    status = old.model_copy(update={"observed_generation": generation, "conditions": conditions})
    return EnginePlan(status, check_in=STORE_LOOK_SECONDS)


def decide_missing(view: EngineView, now: float) -> EnginePlan:
    """No engine and no Job: the first attempt, if any model wants it, and none after one that could not pass."""
    # Kubernetes takes a failed Job away in the end: what it said stands in the Engine's status alone.
    final = None if view.quarantine is not None else find_final_failure(view.engine)  # lifted: once more
    if final is not None:
        return EnginePlan(say_failed(view, final, now, passes=False))
    if not view.wanted:
        failure = Failure(Reason.PENDING, "It is not in the store, and is built once a model wants it.", True)
        return EnginePlan(make_engine_status(view, report_failure(failure, progressing=False), now, phase=None))
    verdict = judge_gpus(view)
    queued = Failure(Reason.BUILD_QUEUED, "The build is about to start.", True)
    status = say_held_up(view, queued if verdict is None else verdict.failure, now)
    if verdict is not None and verdict.blocks:
        return EnginePlan(status, check_in=GPU_LOOK_SECONDS)
    return EnginePlan(status, start=next_attempt(view))


def say_failed(view: EngineView, failure: Failure, now: float, *, passes: bool) -> EngineStatus:
    """The status of an engine whose last attempt failed; ``passes``: another one follows."""
    verdicts = report_failure(failure, progressing=passes)
    return make_engine_status(view, verdicts, now, phase=EnginePhase.FAILED, error=failure.message)


def say_held_up(view: EngineView, failure: Failure, now: float) -> EngineStatus:
    """The status of an engine that something keeps from being built for now."""
    return make_engine_status(view, report_failure(failure, progressing=True), now, phase=EnginePhase.PENDING)


def judge_gpus(view: EngineView) -> GpuVerdict | None:
    """Why no GPU can be had for the build now; None where one can, or none is needed."""
    spec = view.engine.spec
    need = make_gpu_need(spec.accelerator, spec.recipe.tensor_parallel)
    return None if need is None or view.fleet is None else decide_accelerator(need, view.fleet)


def next_attempt(view: EngineView) -> int:
    """The number of the next Job, one above all that ever stood."""
    return max((view.engine.status.attempts, *(job.attempt + 1 for job in view.jobs)))


def decide_building(view: EngineView, last: JobFacts, outcome: Running, now: float) -> EnginePlan:
    """Under way: the builder's own progress, or what holds it up; ended once no model wants the engine."""
    report = view.report
    if view.unwanted_since is not None and now - view.unwanted_since >= UNWANTED_SECONDS:
        return replace(decide_missing(view, now), obsolete=(last,))
    if outcome.trouble is not None:
        return decide_held_up(view, last, outcome.trouble, now)
    heard_at = None if view.heard_at is None else view.heard_at + BUSY_SECONDS
    if last.pod is not None and is_silent(last.pod, heard_at, now):
        return decide_held_up(view, last, describe_silence("The builder", last.pod), now)
    if report is None:
        return decide_starting(view, last, now)
    if report.phase is BuildPhase.FAILED and report.failure is not None:
        message = with_tail(report.failure.message, report.log_tail)
        failure = Failure(report.failure.reason, message, report.failure.retryable)
        verdicts = report_failure(failure, progressing=report.failure.retryable)
        return EnginePlan(make_engine_status(view, verdicts, now, phase=EnginePhase.FAILED), check_in=3.0)
    converting = last.pod is not None and last.pod.step == STEP_CONVERT
    going_on = CONVERTING if converting else f"The engine is being built: {report.phase}."
    failure = view.upload_failure or Failure(Reason.ENGINE_BUILDING, going_on, True)
    status = make_engine_status(view, report_failure(failure, progressing=True), now, phase=EnginePhase(report.phase))
    eta = None if report.eta_seconds is None else max(0, round(report.eta_seconds))
    status = status.model_copy(update={"percent": max(0, min(100, report.percent)), "eta_seconds": eta})
    return EnginePlan(status, check_in=3.0)


def decide_held_up(view: EngineView, last: JobFacts, trouble: Failure, now: float) -> EnginePlan:
    """The pod does not come to run; for want of a GPU, where the scheduler says so."""
    said = None if last.pod is None else explain_unschedulable(last.pod.trouble, judge_gpus(view))
    return EnginePlan(say_held_up(view, said or trouble, now), check_in=3.0)


def decide_starting(view: EngineView, last: JobFacts, now: float) -> EnginePlan:
    """The pod says nothing yet: it waits for a node, which may have no free GPU, or converts before it builds."""
    pod, phase = last.pod, EnginePhase.PENDING
    verdict = judge_gpus(view) if pod is None or not pod.node else None
    failure = Failure(Reason.ENGINE_BUILDING, "The build's pod is starting.", True)
    if verdict is not None:
        failure = verdict.failure
    elif pod is not None and pod.step == STEP_CONVERT:
        failure = Failure(Reason.ENGINE_BUILDING, CONVERTING, True)
        phase = EnginePhase.CONVERTING
    verdicts = report_failure(failure, progressing=True)
    return EnginePlan(make_engine_status(view, verdicts, now, phase=phase), check_in=3.0)


def decide_failed(view: EngineView, last: JobFacts, failure: Failure, now: float) -> EnginePlan:
    """The last attempt failed: another one after back-off, or none where it cannot help."""
    if failure.reason == Reason.VERIFICATION_FAILED and not failure.retryable:
        made = make_quarantine(view.quarantine, last, failure, now)
        return replace(decide_quarantined(view, made, now), quarantine=made)
    mended = failure.reason in MENDED_IN_PLACE
    if not failure.retryable and not mended and failure.reason != Reason.CHECKPOINT_CHANGED:
        return EnginePlan(say_failed(view, failure, now, passes=False))
    killed = count_killed(view.jobs)
    backoff = BUILD_KILLED if killed else INSPECT_TERMINAL if mended and not failure.retryable else JOB_RETRYABLE
    due = (last.finished or failure.at or last.created) + backoff.delay(last.attempt + 1)
    status = say_failed(view, failure, now, passes=True)
    if not view.wanted:
        return EnginePlan(status)
    if now >= due:
        verdict = judge_gpus(view)
        if verdict is not None and verdict.blocks:
            verdicts = report_failure(verdict.failure, progressing=True)
            status = make_engine_status(view, verdicts, now, phase=EnginePhase.FAILED, error=failure.message)
            return EnginePlan(status, check_in=GPU_LOOK_SECONDS)
        return EnginePlan(status, start=next_attempt(view), obsolete=find_obsolete(view.jobs), killed=killed)
    return EnginePlan(status, check_in=due - now)


def decide_quarantined(view: EngineView, quarantine: Quarantine, now: float) -> EnginePlan:
    """It failed its verification: nothing is built until somebody says so."""
    failure = describe_quarantine(quarantine, view.engine)
    verdicts = report_failure(failure, progressing=False)
    return EnginePlan(make_engine_status(view, verdicts, now, phase=EnginePhase.FAILED, error=quarantine.message))


def decide_lost(view: EngineView, last: JobFacts, outcome: Succeeded, now: float) -> EnginePlan:
    """The Job ended well, yet no manifest stands: the store lost it, or somebody took it away. Build again."""
    message = "The build ended well, but its manifest is not in the store; the engine is built again."
    return decide_failed(view, last, Failure(Reason.ENGINE_MISSING, message, True, outcome.at), now)


def make_engine_status(
    view: EngineView, verdicts: tuple[Verdict, ...], now: float, *, phase: EnginePhase | None, error: str = ""
) -> EngineStatus:
    """The status of an engine that is not stored; what was measured of it stays, for replicas may still serve it."""
    old, generation = view.engine.status, view.engine.metadata.generation
    return EngineStatus(
        observed_generation=generation,
        conditions=make_conditions(verdicts, old.conditions, generation=generation, now=now),
        phase=phase,
        attempts=max((old.attempts, *(job.attempt + 1 for job in view.jobs))),
        unused_since=old.unused_since,
        size_bytes=old.size_bytes,
        built_at=old.built_at,
        build_seconds=old.build_seconds,
        verification=old.verification,
        profile=old.profile,
        last_error=(error or old.last_error)[:1024],
    )
