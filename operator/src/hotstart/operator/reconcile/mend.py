"""Has a damaged engine built again: 1 gather accusations and store, 2 decide, 3 delete, 4 say so.

Pods that serve keep what they have loaded. While the engine is gone its models make no pods; once it is whole again
they begin afresh. A deletion holds the Engine's key in the work queue, as the collector's does.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from hotstart.engines.manifest import engine_prefix
from hotstart.exchange.names import LABEL_ENGINE
from hotstart.operator.api import CompletionModel, ConditionType, Engine, Reason
from hotstart.operator.api.model_spec import Management
from hotstart.operator.core.conditions import find_condition
from hotstart.operator.core.damage import ANNOTATION_MENDED, MEND_SECONDS, find_damage, read_mended
from hotstart.operator.core.errors import HotstartError
from hotstart.operator.core.events import EventNote
from hotstart.operator.core.facts import make_pod_facts
from hotstart.operator.core.recipe import find_wanted_engine
from hotstart.operator.reconcile.engine import EngineReconciler, namespace_uid
from hotstart.operator.reconcile.memory import Memory
from hotstart.operator.reconcile.observed import Key, Observed
from hotstart.operator.reconcile.ports import Clock, Cluster, Events, Store
from hotstart.operator.reconcile.work_queue import WorkQueue
from pydantic import ValidationError

log = logging.getLogger(__name__)
LOOK_SECONDS = 60.0  # between two looks at the store for one engine, where nobody new says that it is damaged
Place = tuple[str, str]  # namespace, Engine's name


@dataclass(frozen=True)
class Mender:
    """One a process."""

    cluster: Cluster
    store: Store
    events: Events
    clock: Clock
    observed: Observed
    memory: Memory
    queue: WorkQueue
    engines: EngineReconciler
    _accusers: dict[Place, dict[str, str]] = field(default_factory=dict)  # pods' UIDs -> manifest of the assignment
    _looked: dict[Place, float] = field(default_factory=dict)

    async def turn(self) -> None:
        """Looks after every engine that something is said against, and that a model wants."""
        for raw in self.observed.all("Engine"):
            try:
                engine = Engine.from_api(raw)
            except ValidationError:
                log.debug("engine unreadable, its own reconcile says so name=%s", raw["metadata"]["name"])
                continue
            accusers = self._count_accusers(engine)
            if not (accusers or is_corrupt(engine)) or not self._is_wanted(engine):
                continue
            try:
                await self._look(engine, raw, accusers)
            except HotstartError as error:
                log.warning("damaged engine not mended name=%s error=%s", engine.metadata.name, error)

    def hear(self, namespace: str) -> None:
        """Remembers pods that got other bytes than their engine's manifest says, twice.

        To be called before the namespace's models are reconciled, which replaces these pods.
        """
        for raw in self.observed.all("Pod", namespace):
            heard = self.memory.reports.get(raw["metadata"].get("uid", ""))
            failure = None if heard is None else heard.report.failure
            if failure is None or failure.retryable or failure.reason != Reason.ENGINE_CORRUPT:
                continue
            facts = make_pod_facts(raw)
            place = (facts.namespace, raw["metadata"].get("labels", {}).get(LABEL_ENGINE, ""))
            known = self._accusers.setdefault(place, {})
            if facts.uid not in known and facts.assignment is not None:
                known[facts.uid] = facts.assignment.manifest_sha256
                self._looked.pop(place, None)

    def _count_accusers(self, engine: Engine) -> int:
        """Pods that accuse the engine as it stands now, and not one that stood there before."""
        found = self._accusers.get((engine.metadata.namespace, engine.metadata.name), {})
        return sum(manifest == engine.status.manifest_digest for manifest in found.values())

    def _is_wanted(self, engine: Engine) -> bool:
        """Whether a model that is not paused wants this engine now."""
        for raw in self.observed.all("CompletionModel", engine.metadata.namespace):
            try:
                model = CompletionModel.from_api(raw)
            except ValidationError:
                log.debug("model unreadable, its own reconcile says so name=%s", raw["metadata"]["name"])
                continue
            wanted = find_wanted_engine(model.spec, model.status.checkpoint)
            managed = model.spec.management is Management.MANAGED
            if managed and wanted is not None and wanted.key == engine.spec.key:
                return True
        return False

    async def _look(self, engine: Engine, raw: dict[str, Any], accusers: int) -> None:
        place, now = (engine.metadata.namespace, engine.metadata.name), self.clock.now()
        if now - self._looked.get(place, -LOOK_SECONDS) < LOOK_SECONDS:
            return
        async with self.queue.hold(Key("Engine", *place)) as held:
            if held:
                self._looked[place] = now
                await self._mend(engine, raw, accusers)

    async def _mend(self, engine: Engine, raw: dict[str, Any], accusers: int) -> None:
        meta, now = engine.metadata, self.clock.now()
        prefix = engine_prefix(await namespace_uid(self.cluster, self.memory, meta.namespace), engine.spec.key)
        text = await self.store.get_manifest(prefix)  # 1
        damage = ""
        if text is not None:  # 2
            objects = await self.store.list_objects(prefix)
            damage = find_damage(text, engine.spec.key, prefix, objects, accusers)
        if not damage:
            return
        said = f"The engine is damaged in the store: {damage}."
        if now - read_mended(engine) < MEND_SECONDS:
            said += " It was built again less than an hour ago, and is left for now: who writes to the bucket?"
            await self.events.send(raw, (EventNote(True, Reason.ENGINE_CORRUPT, said),), now)
            return
        await self.store.delete_prefix(prefix)  # 3
        log.warning("damaged engine deleted key=%s damage=%s", engine.spec.key[:12], damage)
        self.engines.look_again()
        self._accusers.pop((meta.namespace, meta.name), None)
        self.queue.add(Key("Engine", meta.namespace, meta.name))
        note = {"metadata": {"annotations": {ANNOTATION_MENDED: str(int(now))}}}
        changed = await self.cluster.patch("Engine", meta.namespace, meta.name, note)
        if changed is not None:
            self.observed.put({**changed, "kind": "Engine"})
        said += " Its files are deleted there, and it is built again; what serves goes on."
        await self.events.send(raw, (EventNote(True, Reason.ENGINE_CORRUPT, said),), now)  # 4


def is_corrupt(engine: Engine) -> bool:
    """Whether its own reconcile found a manifest that cannot be read."""
    ready = find_condition(engine.status.conditions, ConditionType.READY)
    return ready is not None and ready.reason == Reason.ENGINE_CORRUPT
