"""What stands in the cluster, as the decisions see it: pods, Jobs and reports as frozen values. Pure.

Raw objects of the API server come in, facts go out; all that the operator reads of a pod or a Job is read here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from hotstart.exchange.messages import PodAssignment, PodReport
from hotstart.exchange.names import (
    ANNOTATION_ASSIGNMENT,
    ANNOTATION_INSPECT_SPEC,
    LABEL_COMPONENT,
    LABEL_ENGINE,
    LABEL_REVISION,
    LABEL_ROLE,
    LABEL_SLOT,
    ROLE_SERVING,
)
from hotstart.operator.core.names import (
    ANNOTATION_BUNDLE,
    ANNOTATION_DECIDED_AT,
    ANNOTATION_DRAINING_SINCE,
    attempt_of,
)
from pydantic import ValidationError

CALIBRATOR = "calibrator"  # the container beside a build that measures the engine
FRESH_SECONDS = 5.0  # older reports say nothing about now

Object = Mapping[str, Any]


def seconds_of(text: str | None) -> float | None:
    """Seconds since the epoch of an RFC 3339 time."""
    return None if not text else datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


@dataclass(frozen=True)
class Trouble:
    """What holds a pod up, in the words of the kubelet or the scheduler."""

    reason: str
    message: str


@dataclass(frozen=True)
class Exit:
    """How a container ended; ``message`` is its termination message or the tail of its log.

    ``memory`` is what the container may use, or asked for, such as ``40Gi``; '' where neither is said.
    """

    container: str
    code: int
    reason: str
    message: str
    finished: float | None
    memory: str = ""


@dataclass(frozen=True)
class PodFacts:
    """One pod. Times are seconds since the epoch. ``manifest`` is the whole object.

    ``step`` is the init container that runs now; ``evicted`` is the kubelet's word where it took the pod off its node.
    ``disrupted`` says why Kubernetes ends the pod, or has, whatever runs in it: a drain, a node's shutdown or pressure.
    """

    name: str
    namespace: str
    uid: str
    component: str
    role: str
    revision: str
    engine: str
    slot: int
    attempt: int
    node: str
    ip: str
    phase: str
    created: float
    decided: float
    scheduled: float | None
    started: float | None
    running_since: float | None
    ready: bool
    ready_at: float | None
    deleting: bool
    draining_since: float | None
    restarts: int
    trouble: Trouble | None
    exit: Exit | None
    assignment: PodAssignment | None
    report: PodReport | None = None
    report_at: float | None = None
    failed_since: float | None = None  # when its agent first said that it failed, without having got further since
    step: str = ""
    evicted: str = ""
    disrupted: str = ""
    manifest: Object = field(default_factory=dict, compare=False, repr=False)

    def is_fresh(self, now: float) -> bool:
        """Whether the agent's report speaks of now."""
        return self.report_at is not None and now - self.report_at <= FRESH_SECONDS


def owner_of(obj: Object, kind: str) -> str:
    """The name of the controlling owner of ``kind``, or ''."""
    for owner in obj.get("metadata", {}).get("ownerReferences", ()):
        if owner.get("kind") == kind and owner.get("controller"):
            return str(owner["name"])
    return ""


def controllers_of(obj: Object) -> frozenset[tuple[str, str]]:
    """Kind and name of the object's controlling owner, where it has one."""
    owners = obj.get("metadata", {}).get("ownerReferences", ())
    return frozenset((str(owner["kind"]), str(owner["name"])) for owner in owners if owner.get("controller"))


def make_pod_facts(
    pod: Object,
    report: PodReport | None = None,
    report_at: float | None = None,
    failed_since: float | None = None,
) -> PodFacts:
    """The facts of a pod, with the last report of its agent."""
    meta, status = pod["metadata"], pod.get("status", {})
    labels, annotations = meta.get("labels", {}), meta.get("annotations", {})
    conditions = {c["type"]: c for c in status.get("conditions", ())}
    ready = conditions.get("Ready", {})
    created = seconds_of(meta.get("creationTimestamp")) or 0.0
    slot = labels.get(LABEL_SLOT, "0")
    return PodFacts(
        name=meta["name"],
        namespace=meta.get("namespace", ""),
        uid=meta.get("uid", ""),
        component=labels.get(LABEL_COMPONENT, ""),
        role=labels.get(LABEL_ROLE, ROLE_SERVING),
        revision=labels.get(LABEL_REVISION, ""),
        engine=labels.get(LABEL_ENGINE, ""),
        slot=int(slot) if slot.isdigit() else 0,
        attempt=attempt_of(meta),
        node=pod.get("spec", {}).get("nodeName", ""),
        ip=status.get("podIP", ""),
        phase=status.get("phase", "Pending"),
        created=created,
        decided=number_in(annotations, ANNOTATION_DECIDED_AT) or created,
        scheduled=seconds_of(conditions.get("PodScheduled", {}).get("lastTransitionTime")),
        started=seconds_of(status.get("startTime")),
        running_since=find_running_since(status),
        ready=ready.get("status") == "True",
        ready_at=seconds_of(ready.get("lastTransitionTime")) if ready.get("status") == "True" else None,
        deleting=bool(meta.get("deletionTimestamp")),
        draining_since=number_in(annotations, ANNOTATION_DRAINING_SINCE),
        restarts=sum(c.get("restartCount", 0) for c in container_statuses(status)),
        trouble=find_trouble(status, conditions),
        exit=find_exit(status, pod.get("spec", {})),
        assignment=read_assignment(annotations.get(ANNOTATION_ASSIGNMENT, "")),
        report=report,
        report_at=report_at,
        failed_since=failed_since,
        step=find_step(status, pod.get("spec", {})),
        evicted=status.get("message", "") if status.get("reason") == "Evicted" else "",
        disrupted=find_disruption(status, conditions),
        manifest=pod,
    )


def number_in(annotations: Mapping[str, str], name: str) -> float | None:
    """The number in an annotation; None where there is none."""
    try:
        return float(annotations[name])
    except (KeyError, ValueError):
        return None


def container_statuses(status: Object) -> tuple[Object, ...]:
    """Statuses of all containers, init containers first; what befalls a calibrator is no matter of its pod."""
    every = (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ()))
    return tuple(container for container in every if container.get("name") != CALIBRATOR)


def find_running_since(status: Object) -> float | None:
    """When the last of the containers that run was started; None while the pod is not Running."""
    if status.get("phase") != "Running":
        return None
    running = (c.get("state", {}).get("running", {}).get("startedAt") for c in container_statuses(status))
    return max((seconds_of(at) or 0.0 for at in running if at), default=seconds_of(status.get("startTime")))


QUIET_WAITING = frozenset({"", "ContainerCreating", "PodInitializing"})


def find_trouble(status: Object, conditions: Mapping[str, Object]) -> Trouble | None:
    """What holds the pod up: not schedulable, or a container that waits for more than its turn."""
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable":
        return Trouble("Unschedulable", scheduled.get("message", ""))
    for container in container_statuses(status):
        waiting = container.get("state", {}).get("waiting")
        if waiting and waiting.get("reason", "") not in QUIET_WAITING:
            return Trouble(waiting["reason"], waiting.get("message", ""))
    return None


def find_disruption(status: Object, conditions: Mapping[str, Object]) -> str:
    """Why Kubernetes ends the pod, or has; '' where it does not."""
    target = conditions.get("DisruptionTarget", {})
    if target.get("status") != "True":
        return ""
    return str(status.get("message") or target.get("message") or target.get("reason") or "a disruption")


def find_step(status: Object, spec: Object) -> str:
    """The init container that runs and is to end; '' where none does."""
    ending = {c["name"] for c in spec.get("initContainers", ()) if c.get("restartPolicy") != "Always"}
    running = (c["name"] for c in status.get("initContainerStatuses", ()) if "running" in c.get("state", {}))
    return next((name for name in running if name in ending), "")


def find_memory(spec: Object, container: str) -> str:
    """Memory that a container may use, else what it asked for."""
    for each in (*spec.get("initContainers", ()), *spec.get("containers", ())):
        if each.get("name") == container:
            said = each.get("resources", {})
            return str(said.get("limits", {}).get("memory") or said.get("requests", {}).get("memory") or "")
    return ""


def find_exit(status: Object, spec: Object) -> Exit | None:
    """How a container ended last, the one that failed before one that did not.

    A sidecar is ended with its pod, so how is of no interest once the pod is done.
    """
    exits = []
    done = status.get("phase") in ("Succeeded", "Failed")
    sidecars = {c["name"] for c in spec.get("initContainers", ()) if c.get("restartPolicy") == "Always"}
    for container in container_statuses(status):
        ended = container.get("state", {}).get("terminated") or container.get("lastState", {}).get("terminated")
        if ended:
            exits.append(
                Exit(
                    container=container.get("name", ""),
                    code=int(ended.get("exitCode", 0)),
                    reason=ended.get("reason", ""),
                    message=(ended.get("message") or "").strip(),
                    finished=seconds_of(ended.get("finishedAt")),
                    memory=find_memory(spec, container.get("name", "")),
                )
            )
    own = [found for found in exits if found.container not in sidecars] if done else exits
    return max(own or exits, key=lambda found: (found.code != 0, found.finished or 0.0), default=None)


def read_assignment(text: str) -> PodAssignment | None:
    """The assignment in a pod's annotation; None where there is none that this version understands."""
    try:
        return PodAssignment.model_validate_json(text) if text else None
    except ValidationError:
        return None


@dataclass(frozen=True)
class JobFacts:
    """One Job with its newest pod. ``spec_hash`` is set for inspect Jobs, ``bundle`` for those of a tokenizer."""

    name: str
    namespace: str
    uid: str
    attempt: int
    spec_hash: str
    created: float
    complete: bool
    failed: bool
    finished: float | None
    failure_reason: str
    failure_message: str
    deleting: bool
    pod: PodFacts | None
    bundle: str = ""


def make_job_facts(job: Object, pods: Iterable[Object]) -> JobFacts:
    """The facts of a Job, with the newest of its pods among ``pods``."""
    meta, status = job["metadata"], job.get("status", {})
    conditions = {c["type"]: c for c in status.get("conditions", ()) if c.get("status") == "True"}
    own = [pod for pod in pods if owner_of(pod, "Job") == meta["name"]]
    newest = max(own, key=lambda pod: pod["metadata"].get("creationTimestamp") or "", default=None)
    failed = conditions.get("Failed") or conditions.get("FailureTarget") or {}
    ended = conditions.get("Complete") or failed
    return JobFacts(
        name=meta["name"],
        namespace=meta.get("namespace", ""),
        uid=meta.get("uid", ""),
        attempt=attempt_of(meta),
        spec_hash=meta.get("annotations", {}).get(ANNOTATION_INSPECT_SPEC, ""),
        created=seconds_of(meta.get("creationTimestamp")) or 0.0,
        complete="Complete" in conditions,
        failed=bool(failed),
        finished=seconds_of(ended.get("lastTransitionTime")) if ended else None,
        failure_reason=failed.get("reason", ""),
        failure_message=failed.get("message", ""),
        deleting=bool(meta.get("deletionTimestamp")),
        pod=None if newest is None else make_pod_facts(newest),
        bundle=meta.get("annotations", {}).get(ANNOTATION_BUNDLE, ""),
    )
