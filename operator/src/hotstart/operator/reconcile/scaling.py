"""Scaling: once a second the pure decision for every model, and in mode SLO its write through /scale."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

from hotstart.exchange.names import ROLE_DRAINING
from hotstart.operator.api import CompletionModel, Reason
from hotstart.operator.api.model_spec import Management
from hotstart.operator.core.errors import HotstartError
from hotstart.operator.core.events import EventNote
from hotstart.operator.core.pod_states import has_failed, is_serving
from hotstart.operator.core.scale import Fleet, ScaleDecision, decide_scale, is_external
from hotstart.operator.core.status import LATENCY_WINDOW_SECONDS, WRITE_EVERY_SECONDS, is_outdated, to_decision
from hotstart.operator.reconcile.memory import Memory, ModelMemory
from hotstart.operator.reconcile.model import describe_refusal, gather_capacity, gather_pods
from hotstart.operator.reconcile.observed import Key, Observed
from hotstart.operator.reconcile.ports import Clock, Cluster, Events
from hotstart.operator.reconcile.work_queue import WorkQueue
from pydantic import ValidationError

log = logging.getLogger(__name__)
KEPT_DECISIONS = 10
FLIP_SECONDS = 3.0  # a model whose status cannot be written is not woken for it more often


@dataclass(frozen=True)
class Scaler:
    """One a process; the only writer of spec.replicas in mode SLO."""

    cluster: Cluster
    events: Events
    clock: Clock
    observed: Observed
    memory: Memory
    queue: WorkQueue

    async def turn(self) -> None:
        """One decision for every model."""
        for raw in self.observed.all("CompletionModel"):
            if raw["metadata"].get("deletionTimestamp"):
                continue
            try:
                model = CompletionModel.from_api(raw)
            except ValidationError:
                log.debug("model unreadable, its own reconcile says so name=%s", raw["metadata"]["name"])
                continue
            try:
                await self._scale(model, raw)
            except Exception:  # of this model: the others are scaled all the same
                log.exception("scaling raised model=%s", raw["metadata"]["name"])

    async def _scale(self, model: CompletionModel, raw: dict[str, Any]) -> None:
        meta, now = model.metadata, self.clock.now()
        memory = self.memory.of(meta.namespace, meta.name, meta.uid)
        fleet = self._gather_fleet(model)  # 1
        capacity = gather_capacity(self.observed, model)
        decision, state = decide_scale(memory.window, memory.scale, model.spec, fleet, now, capacity)  # 2
        if memory.decision is not None and has_ended(memory.decision, decision):
            text = f"The override of the number of replicas has ended. {decision.message}"
            await self.events.send(raw, (EventNote(False, Reason.OVERRIDE_ENDED, text),), now)
        paused = model.spec.management is Management.PAUSED
        if decision.replicas != fleet.current and not paused and not is_external(model.spec):
            decision = await self._write(raw, decision, fleet.current)  # 3
        memory.scale = state
        changes = decision.replicas != fleet.current
        self._remember(model, memory, decision, fleet.current, record=changes and not paused)  # 4

    async def _write(self, raw: dict[str, Any], decision: ScaleDecision, before: int) -> ScaleDecision:
        """Writes the number; returns what became of the decision: where it is refused, the number stays, with why."""
        namespace, name, now = raw["metadata"]["namespace"], raw["metadata"]["name"], self.clock.now()
        try:
            await self.cluster.set_scale(namespace, name, decision.replicas)
        except HotstartError as error:
            log.warning("not scaled model=%s/%s to=%d error=%s", namespace, name, decision.replicas, error)
            decision = refuse(decision, before, error)
            note = EventNote(True, decision.reason, decision.message)
        else:
            self._take_in(raw, decision)
            log.info(
                "scaled model=%s/%s from=%d to=%d reason=%s",
                namespace,
                name,
                before,
                decision.replicas,
                decision.reason,
            )
            text = f"Scaled from {before} to {decision.replicas}: {decision.message}"
            note = EventNote(False, decision.reason, text)
        await self.events.send(raw, (note,), now)
        return decision

    def _gather_fleet(self, model: CompletionModel) -> Fleet:
        """Replicas that serve and that are on their way, and the routers that do not report."""
        meta, now = model.metadata, self.clock.now()
        owned = self.observed.owned("Pod", meta.namespace, "CompletionModel", meta.name)
        live = [
            pod for pod in gather_pods(owned, self.memory.reports) if not pod.deleting and pod.role != ROLE_DRAINING
        ]
        ready = sum(is_serving(pod, now) for pod in live)
        failed = sum(has_failed(pod, now) for pod in live)
        return Fleet(
            current=model.spec.replicas,
            ready=ready,
            coming=len(live) - ready - failed,
            rolling_out=len({pod.revision for pod in live}) > 1,
            silent_routers=self.memory.router_facts(meta.namespace, meta.name).silent,
        )

    def _take_in(self, raw: dict[str, Any], decision: ScaleDecision) -> None:
        """The number counts at once: the watch tells of it later, and until then nothing is to be decided twice."""
        self.observed.amend({**raw, "spec": {**raw["spec"], "replicas": decision.replicas}})

    def _remember(
        self, model: CompletionModel, memory: ModelMemory, decision: ScaleDecision, before: int, *, record: bool
    ) -> None:
        """The decision for status; a change is also one of the last ten, and advice once until it changes."""
        last = memory.decision
        memory.decision = decision
        advised = is_external(model.spec) and last is not None and last.replicas == decision.replicas
        if record and not advised:
            kept = memory.decisions if memory.decisions is not None else model.status.decisions
            made = to_decision(decision, before, self.clock.now())
            memory.decisions = (made, *kept)[:KEPT_DECISIONS]
        if record or last is None or last.reason is not decision.reason or self._is_outdated(model, memory):
            memory.woken_at = self.clock.now()
            self.queue.add(Key("CompletionModel", model.metadata.namespace, model.metadata.name))

    def _is_outdated(self, model: CompletionModel, memory: ModelMemory) -> bool:
        """Whether status is to follow the traffic: at once where a condition flips, else each 30 s while there is any.

        Nothing else wakes a model whose number of replicas fits.
        """
        now = self.clock.now()
        routers = self.memory.router_facts(model.metadata.namespace, model.metadata.name)
        if is_outdated(model, memory.window, routers, now):
            return now - memory.woken_at >= FLIP_SECONDS
        busy = any(second.arrivals for second in memory.window.last(LATENCY_WINDOW_SECONDS, now))
        return busy and now - max(memory.written_at, memory.woken_at) >= WRITE_EVERY_SECONDS


def refuse(decision: ScaleDecision, before: int, error: HotstartError) -> ScaleDecision:
    """The decision that holds the number, for the API server does not take another."""
    reason = describe_refusal(error, Reason.POD_CREATE_FAILED).reason
    message = f"The API server does not take {decision.replicas} replicas: {error}"
    return replace(decision, replicas=before, reason=Reason(reason), message=message)


def has_ended(last: ScaleDecision, decision: ScaleDecision) -> bool:
    """Whether on-call's override held until just now."""
    return last.reason is Reason.OVERRIDE_ACTIVE and decision.reason is not Reason.OVERRIDE_ACTIVE
