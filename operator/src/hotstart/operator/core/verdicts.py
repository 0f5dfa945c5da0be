"""The verdicts of a model, one condition a function. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from hotstart.engines.pod_agent.load_failures import find_known_failure
from hotstart.operator.api import CompletionModel, ConditionStatus, ConditionType, Engine, Reason
from hotstart.operator.api.model_spec import Management
from hotstart.operator.core.accelerators import GpuVerdict, explain_unschedulable
from hotstart.operator.core.capacity import Capacity
from hotstart.operator.core.conditions import Verdict, failed_verdict, find_condition
from hotstart.operator.core.crashes import CRASHES_THAT_STOP, CrashRecord, describe_stop, read_crash
from hotstart.operator.core.engine_status import find_final_failure
from hotstart.operator.core.facts import PodFacts
from hotstart.operator.core.jobs import Failure, read_trouble
from hotstart.operator.core.pod_states import describe_silence, has_failed, is_serving, is_silent
from hotstart.operator.core.quarantine import describe_nodes
from hotstart.operator.core.recipe import WantedEngine
from hotstart.operator.core.revision import Target
from hotstart.operator.core.scale import ScaleDecision, is_external
from hotstart.operator.core.window import Latency, Window

#: What stays as it is until somebody changes the spec, or lifts the quarantine.
STUCK = frozenset(
    {Reason.RUNTIME_NOT_AVAILABLE, Reason.DOES_NOT_FIT, Reason.UNSUPPORTED_RECIPE, Reason.ENGINE_QUARANTINED}
)

#: Of a decision: demand is not known, or the API server does not take the number.
NOT_SCALING = frozenset({Reason.HOLD_NO_DATA, Reason.QUOTA_EXCEEDED, Reason.ADMISSION_DENIED, Reason.POD_CREATE_FAILED})


@dataclass(frozen=True)
class RouterFacts:
    """The routers: how many there are, how many answer, whether all that answer hold the model's newest route."""

    total: int = 0
    heard: int = 0
    up_to_date: bool = False

    @property
    def silent(self) -> int:
        """How many do not answer."""
        return self.total - self.heard


def judge_engine(
    wanted: WantedEngine | None, engine: Engine | None, failure: Failure | None, *, inspecting: bool
) -> Verdict:
    """EngineReady: inspection first, then the Engine's own Ready."""
    kind = ConditionType.ENGINE_READY
    if failure is not None:
        return failed_verdict(kind, failure)
    if inspecting or wanted is None:
        return Verdict(kind, False, Reason.CHECKPOINT_INSPECTING, "The checkpoint is being inspected.")
    ready = None if engine is None else find_condition(engine.status.conditions, ConditionType.READY)
    if ready is None:
        return Verdict(kind, False, Reason.BUILD_QUEUED, f"Engine {wanted.name[:12]} is looked up in the store.")
    if ready.status is ConditionStatus.TRUE:
        return Verdict(kind, True, ready.reason, f"Engine {wanted.name[:12]} stands in the store.")
    return Verdict(kind, False, ready.reason, ready.message)


def judge_workload(
    model: CompletionModel,
    pods: Iterable[PodFacts],
    crashes: CrashRecord,
    target: Target | None,
    now: float,
    gpus: GpuVerdict | None = None,
) -> Verdict:
    """WorkloadReady: as many pods serve as are wanted, of whatever revision. ``gpus``: why no GPU can be had now."""
    kind, wanted = ConditionType.WORKLOAD_READY, model.spec.replicas
    live = [pod for pod in pods if not pod.deleting]
    serving = sum(is_serving(pod, now) for pod in live)
    if wanted == 0 and not serving:
        return Verdict(kind, True, Reason.SCALED_TO_ZERO, "No replica is wanted.")
    if serving >= wanted:
        return Verdict(kind, True, Reason.REPLICAS_READY, f"{serving} of {wanted} replicas are ready.")
    failure = find_pod_failure(live, crashes, now, gpus)
    if failure is not None:
        return Verdict(kind, False, failure.reason, f"{serving} of {wanted} replicas are ready. {failure.message}")
    if target is None and not live:
        return Verdict(kind, False, Reason.PENDING, "Replicas start once the engine is ready.")
    reason = Reason.REPLICAS_STARTING if target is not None else Reason.REPLICAS_UNAVAILABLE
    return Verdict(kind, False, reason, f"{serving} of {wanted} replicas are ready.")


def find_pod_failure(pods: list[PodFacts], crashes: CrashRecord, now: float, gpus: GpuVerdict | None) -> Failure | None:
    """The worst that is known of the pods that do not serve."""
    for pod in pods:
        if has_failed(pod, now) or (pod.report is not None and pod.report.failure is not None):
            reason, message = read_crash(pod)
            return Failure(reason, f"Pod {pod.name}: {message}", True)
    said = next((words for pod in pods if not is_serving(pod, now) and (words := read_last_words(pod))), None)
    if said is not None:
        return said
    if crashes.count:
        return Failure(
            crashes.reason or Reason.PODS_CRASHING, f"Crashed {crashes.count} times: {crashes.message}", True
        )
    for pod in pods:
        if pod.trouble is not None and not is_serving(pod, now):
            waits = explain_unschedulable(pod.trouble, gpus)
            return waits or read_trouble(pod.trouble, secret="", what=f"pod {pod.name}")
    silent = (pod for pod in pods if not is_serving(pod, now) and is_silent(pod, pod.report_at, now))
    return next((describe_silence("The agent", pod) for pod in silent), None)


def read_last_words(pod: PodFacts) -> Failure | None:
    """The failure where a container ended in words of TensorRT or TensorRT-LLM that say what is wrong.

    With tensor parallelism Triton loads the engine as it starts: a load that fails ends it, and no agent can report it.
    """
    known = None if pod.exit is None or pod.exit.code == 0 else find_known_failure(pod.exit.message)
    if known is None:
        return None
    return Failure(known.failure.reason, f"Pod {pod.name}: {known.failure.message}", known.failure.retryable)


def judge_endpoint(model: CompletionModel, serving: int, routers: RouterFacts) -> Verdict:
    """EndpointReady: every router that answers sends requests to the model's pods."""
    kind = ConditionType.ENDPOINT_READY
    if routers.heard == 0:
        message = "No router answers: see the Deployment of the routers." if routers.total else "There is no router."
        return Verdict(kind, False, Reason.NO_ROUTER, message)
    if serving == 0 and model.spec.replicas > 0:
        return Verdict(kind, False, Reason.NO_ENDPOINTS, "No replica is ready to take requests.")
    if not routers.up_to_date:
        return Verdict(kind, False, Reason.ROUTER_BEHIND, "Routers are about to learn of the newest endpoints.")
    if serving == 0:
        return Verdict(kind, True, Reason.SCALED_TO_ZERO, "No replica is wanted; the routers know the model.")
    name = f"{model.metadata.namespace}/{model.metadata.name}"
    return Verdict(kind, True, Reason.ENDPOINTS_PUBLISHED, f"The routers serve model {name!r}.")


def judge_slo(model: CompletionModel, latency: Latency) -> Verdict:
    """SLOMet: the percentile of the last minute against the SLO; the value in steps of 10 ms."""
    kind, slo = ConditionType.SLO_MET, model.spec.slo
    if latency.value is None:
        return Verdict(kind, None, Reason.NO_TRAFFIC, "No completion in the last minute.")
    text = (
        f"P{slo.percentile} of the last minute is {step(latency.value)} ms, the SLO {slo.latency.milliseconds} ms: "
        f"{latency.violations} of {latency.samples} requests took longer."
    )
    if latency.misses(slo.percentile):
        return Verdict(kind, False, Reason.ABOVE_SLO, text)
    return Verdict(kind, True, Reason.WITHIN_SLO, text)


def judge_attainable(model: CompletionModel, capacity: Capacity) -> Verdict:
    """SLOAttainable: whether one request alone meets the SLO, by the engine's calibration."""
    kind, slo = ConditionType.SLO_ATTAINABLE, model.spec.slo.latency.milliseconds
    if capacity.lone_ms is None:
        text = f"{capacity.misfit[:1].upper()}{capacity.misfit[1:]}: a replica is taken to hold {capacity.describe()}."
        return Verdict(kind, None, Reason.NOT_MEASURED, text)
    size = f"{model.spec.engine.limits.input_tokens} + {model.spec.serving.max_new_tokens} tokens"
    lone = f"A lone request of {size} takes {capacity.lone_ms:.0f} ms, the SLO is {slo} ms"
    if capacity.lone_misses:
        doubt = " The calibration was noisy: the engine may be faster." if capacity.noisy else ""
        return Verdict(kind, False, Reason.LONE_REQUEST_MISSES_SLO, f"{lone}: more replicas will not help.{doubt}")
    return Verdict(kind, True, Reason.ATTAINABLE, f"{lone}; a replica holds {capacity.describe()}.")


def step(milliseconds: float) -> int:
    """Milliseconds in steps of 10, rounded."""
    return round(milliseconds / 10) * 10


def judge_metrics(window: Window, routers: RouterFacts, now: float) -> Verdict:
    """MetricsAvailable: routers report."""
    kind = ConditionType.METRICS_AVAILABLE
    if window.is_fresh(now) and routers.silent:
        text = f"{routers.silent} of {routers.total} routers do not report: no replica is taken away meanwhile."
        return Verdict(kind, False, Reason.METRICS_STALE, text)
    if window.is_fresh(now):
        return Verdict(kind, True, Reason.METRICS_FRESH, "Routers report each second.")
    if window.heard is None:
        return Verdict(kind, False, Reason.METRICS_MISSING, "No router has reported yet.")
    return Verdict(kind, False, Reason.METRICS_STALE, "No router has reported lately; scaling holds.")


def judge_scaling(model: CompletionModel, decision: ScaleDecision | None) -> Verdict:
    """ScalingActive: who scales, and what the last word was."""
    kind = ConditionType.SCALING_ACTIVE
    if is_external(model.spec):
        advice = "" if decision is None else f" Hotstart would run {decision.replicas}: {decision.message}"
        return Verdict(kind, False, Reason.SCALING_EXTERNAL, f"Somebody else writes spec.replicas.{advice}")
    if model.spec.management is Management.PAUSED:
        return Verdict(kind, False, Reason.PAUSED, "management is Paused: the number of replicas stays.")
    if decision is None:
        return Verdict(kind, None, Reason.PENDING, "No decision was taken yet.")
    if decision.reason in NOT_SCALING:
        return Verdict(kind, False, decision.reason, decision.message)
    if decision.reason is Reason.OVERRIDE_ACTIVE:
        return Verdict(kind, True, decision.reason, decision.message)
    return Verdict(kind, True, Reason.SCALING_BY_SLO, decision.message)


def judge_progress(
    model: CompletionModel,
    engine: Verdict,
    workload: Verdict,
    pods: Iterable[PodFacts],
    target: Target | None,
    now: float,
    *,
    made: Engine | None,
    cordoned: Collection[str],
    gpus: GpuVerdict | None,
) -> Verdict:
    """Progressing: something is under way to what the spec wants.

    ``made`` is the wanted Engine that ``engine`` speaks of; ``cordoned``: nodes that pods are to leave.
    """
    kind = ConditionType.PROGRESSING
    if model.spec.management is Management.PAUSED:
        return Verdict(kind, False, Reason.PAUSED, "management is Paused: nothing is written for this model.")
    live = [pod for pod in pods if not pod.deleting]
    if target is not None and any(pod.revision != target.revision for pod in live):
        text = f"Pods of revision {target.revision[:8]} replace older ones."
        return Verdict(kind, True, Reason.ROLLING_OUT, text)
    if engine.holds is not True:
        stuck = engine.reason in STUCK or (made is not None and find_final_failure(made) is not None)
        return Verdict(kind, not stuck, engine.reason, "")
    if workload.holds is not True:
        return Verdict(kind, True, workload.reason, "")
    leaving = sum(pod.node in cordoned for pod in live)
    if target is not None and leaving:
        waits = find_pod_failure(live, CrashRecord(), now, gpus)
        text = "1 pod moves off a cordoned node." if leaving == 1 else f"{leaving} pods move off cordoned nodes."
        return Verdict(kind, True, Reason.ROLLING_OUT, f"{text} {waits.message}" if waits else text)
    return Verdict(kind, False, Reason.UP_TO_DATE, "All is as wanted.")


def judge_health(crashes: CrashRecord, target: Target | None) -> Verdict:
    """Degraded: the revision crashed so often that no more pods are made of it, or its engine fails on some node."""
    kind = ConditionType.DEGRADED
    nodes = () if target is None else target.avoid
    if target is None or crashes.count < CRASHES_THAT_STOP:
        if target is not None and nodes:
            return Verdict(kind, True, Reason.ENGINE_QUARANTINED, describe_nodes(target.engine_name, nodes))
        return Verdict(kind, False, Reason.HEALTHY, "")
    return Verdict(kind, True, Reason.REVISION_STOPPED, describe_stop(crashes, target.revision))
