"""Which pods a model should have: creates, retires, deletes. Pure.

The operator owns the pods, for it must choose which one becomes, stays and stops being a replica. A change of revision
surges first and drains after: an old pod is taken out only when enough ready ones stand without it. Policies are small
functions in an ordered tuple; each adds steps and says which pods it has disposed of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from hotstart.exchange.names import ROLE_DRAINING
from hotstart.operator.api import Reason
from hotstart.operator.core.backoff import POD_CRASH, STOPPED_RETRY_SECONDS
from hotstart.operator.core.crashes import CRASHES_THAT_STOP, CrashRecord, read_crash
from hotstart.operator.core.facts import PodFacts
from hotstart.operator.core.pod_states import gives_up_at, has_failed, is_serving
from hotstart.operator.core.revision import Target

DRAIN_LIMIT_SECONDS = 60.0


@dataclass(frozen=True)
class WorkloadView:
    """What decides about the pods. ``forgotten`` are routes that no router holds any longer, by pod UID."""

    pods: tuple[PodFacts, ...]
    target: Target | None
    replicas: int
    max_surge: int
    crashes: CrashRecord
    cordoned: frozenset[str]
    out_of_routes: frozenset[str]
    now: float


@dataclass(frozen=True)
class CreatePod:
    """A new replica of the target."""

    slot: int
    attempt: int


@dataclass(frozen=True)
class RetirePod:
    """Out of the routes, then drain."""

    pod: PodFacts
    reason: str
    message: str


@dataclass(frozen=True)
class DeletePod:
    """Nothing runs in it any longer, or never will."""

    pod: PodFacts
    reason: str
    message: str


Step = CreatePod | RetirePod | DeletePod


@dataclass(frozen=True)
class WorkloadPlan:
    """Steps in order; ``check_in`` is the seconds until another look is due, without an event."""

    steps: tuple[Step, ...] = ()
    check_in: float | None = None
    stopped: bool = False


@dataclass(frozen=True)
class Draft:
    """What the policies have decided so far: pods not disposed of yet, and the steps."""

    view: WorkloadView
    pods: tuple[PodFacts, ...]
    steps: tuple[Step, ...] = ()
    check_in: float | None = None

    def delete(self, pod: PodFacts, reason: str, message: str) -> Draft:
        """The draft with that pod deleted."""
        return self.without(pod, DeletePod(pod, reason, message))

    def retire(self, pod: PodFacts, reason: str, message: str) -> Draft:
        """The draft with that pod taken out of service."""
        return self.without(pod, RetirePod(pod, reason, message))

    def without(self, pod: PodFacts, step: Step) -> Draft:
        """The draft with one step more and one pod fewer."""
        return replace(self, pods=tuple(p for p in self.pods if p.uid != pod.uid), steps=(*self.steps, step))

    def look_in(self, seconds: float) -> Draft:
        """The draft with another look due no later than in so many seconds."""
        seconds = max(0.1, seconds)
        return replace(self, check_in=seconds if self.check_in is None else min(self.check_in, seconds))

    def is_current(self, pod: PodFacts) -> bool:
        """Whether the pod is of the target and on a node that stays."""
        target = self.view.target
        return target is not None and pod.revision == target.revision and pod.node not in self.view.cordoned


def drained_pods(draft: Draft) -> Draft:
    """Pods that drain go when no router sends to them and nothing runs in them, or when the limit has passed."""
    now = draft.view.now
    for pod in draft.pods:
        if pod.role != ROLE_DRAINING:
            continue
        since = pod.draining_since or pod.created
        report = pod.report if pod.report_at is not None and pod.report_at > since and pod.is_fresh(now) else None
        idle = report is not None and report.in_flight == 0 and report.queued == 0
        if idle and pod.uid in draft.view.out_of_routes:
            draft = draft.delete(pod, Reason.POD_DELETED, f"{pod.name} is drained.")
        elif now - since >= DRAIN_LIMIT_SECONDS:
            limit = f"{DRAIN_LIMIT_SECONDS:.0f} s"
            draft = draft.delete(pod, Reason.POD_DELETED, f"{pod.name} did not drain within {limit}.")
        else:
            draft = replace(draft, pods=tuple(p for p in draft.pods if p.uid != pod.uid)).look_in(0.5)
    return draft


def deleting_pods(draft: Draft) -> Draft:
    """Pods that somebody else deletes count no longer."""
    return replace(draft, pods=tuple(pod for pod in draft.pods if not pod.deleting))


def failed_pods(draft: Draft) -> Draft:
    """Pods that will not serve go, but the last one of a stopped revision: its logs tell why."""
    stopped = is_stopped(draft.view)
    for pod in draft.pods:
        if not has_failed(pod, draft.view.now):
            given_up = gives_up_at(pod)
            draft = draft if given_up is None else draft.look_in(given_up - draft.view.now)
            continue
        reason, message = read_crash(pod)
        if stopped and draft.is_current(pod) and not retry_is_due(draft.view):
            draft = replace(draft, pods=tuple(p for p in draft.pods if p.uid != pod.uid))
            draft = draft.look_in(STOPPED_RETRY_SECONDS - (draft.view.now - draft.view.crashes.last_at))
        else:
            draft = draft.delete(pod, reason, f"{pod.name} failed and is replaced: {message}")
    return draft


def is_stopped(view: WorkloadView) -> bool:
    """Whether the target's revision crashed so often that no more pods are made of it for now."""
    return view.crashes.count >= CRASHES_THAT_STOP


def retry_is_due(view: WorkloadView) -> bool:
    """Whether a stopped revision may try one pod again."""
    return view.now - view.crashes.last_at >= STOPPED_RETRY_SECONDS


def never_needed(draft: Draft) -> Draft:
    """Pods of an older revision that never served are of no use once there is a new one."""
    for pod in draft.pods:
        unused = pod.ready_at is None and not is_serving(pod, draft.view.now) and pod.restarts == 0
        if draft.view.target is not None and pod.revision != draft.view.target.revision and unused:
            draft = draft.delete(pod, Reason.POD_REPLACED, f"{pod.name} never served, and its revision is superseded.")
    return draft


def surplus_of_old(draft: Draft) -> Draft:
    """Old pods go as ready new ones stand in for them: unready ones first, and never below the wanted number."""
    view = draft.view
    if view.target is None:
        return draft
    old = [pod for pod in draft.pods if not draft.is_current(pod)]
    ready_old = sorted((p for p in old if is_serving(p, view.now)), key=lambda p: (p.created, p.slot), reverse=True)
    unready_old = [pod for pod in old if pod not in ready_old]
    ready_new = sum(is_serving(pod, view.now) for pod in draft.pods if draft.is_current(pod))
    may_go_unready = max(0, ready_new + len(old) - view.replicas)
    may_go_ready = max(0, ready_new + len(ready_old) - view.replicas)
    for pod in (*unready_old[:may_go_unready], *ready_old[:may_go_ready]):
        moved = pod.revision == view.target.revision
        reason = Reason.NODE_CORDONED if moved else Reason.POD_REPLACED
        why = (
            f"its node {pod.node} is cordoned" if moved else f"revision {view.target.revision[:8]} serves in its stead"
        )
        draft = draft.retire(pod, reason, f"{pod.name} is drained: {why}.")
    return draft


def surplus_of_current(draft: Draft) -> Draft:
    """More replicas than wanted: unready ones go first, then the newest."""
    view = draft.view
    if view.target is None:
        current = list(draft.pods)
        keep = view.replicas
    else:
        current = [pod for pod in draft.pods if draft.is_current(pod)]
        keep = view.replicas
    ranked = sorted(current, key=lambda p: (not is_serving(p, view.now), p.created, p.slot), reverse=True)
    for pod in ranked[: max(0, len(current) - keep)]:
        message = f"{pod.name} is drained: {view.replicas} replicas are wanted."
        draft = draft.retire(pod, Reason.DRAINING, message)
    return draft


def missing_replicas(draft: Draft) -> Draft:
    """Fewer replicas than wanted: new ones, over the wanted number by the surge at most, and after back-off."""
    view = draft.view
    if view.target is None:
        return draft
    current = [pod for pod in draft.pods if draft.is_current(pod)]
    ceiling = view.replicas + (view.max_surge if len(current) < len(draft.pods) else 0)
    lacking = min(view.replicas - len(current), ceiling - len(draft.pods))
    if lacking <= 0:
        return draft
    stopped = is_stopped(view)
    delay = STOPPED_RETRY_SECONDS if stopped else POD_CRASH.delay(view.crashes.count)
    wait = view.crashes.last_at + delay - view.now
    if view.crashes.count and wait > 0:
        return draft.look_in(wait)
    if stopped:
        lacking = 1 if all(is_serving(pod, view.now) for pod in current) else 0
    return replace(draft, steps=(*draft.steps, *make_creates(view, lacking)))


def make_creates(view: WorkloadView, count: int) -> tuple[CreatePod, ...]:
    """Creates in the lowest free slots; the attempt is above every one that was seen in the slot."""
    assert view.target is not None
    own = [pod for pod in view.pods if pod.revision == view.target.revision]
    taken = {
        pod.slot for pod in own if not pod.deleting and pod.role != ROLE_DRAINING and not has_failed(pod, view.now)
    }
    free = (slot for slot in range(len(taken) + count + 1) if slot not in taken)
    creates = []
    for _, slot in zip(range(count), free, strict=False):
        attempts = [pod.attempt for pod in own if pod.slot == slot]
        creates.append(CreatePod(slot, max(attempts, default=-1) + 1))
    return tuple(creates)


POLICIES: tuple[Callable[[Draft], Draft], ...] = (
    drained_pods,
    deleting_pods,
    failed_pods,
    never_needed,
    surplus_of_old,
    surplus_of_current,
    missing_replicas,
)


def decide_workload(view: WorkloadView) -> WorkloadPlan:
    """The steps that bring the pods nearer to what is wanted; none where they are as wanted."""
    draft = Draft(view, view.pods)
    for policy in POLICIES:
        draft = policy(draft)
    return WorkloadPlan(draft.steps, draft.check_in, is_stopped(view))
