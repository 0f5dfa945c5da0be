"""The whole world of the operator, and one process of it: what applies, steps time and is looked at in tests."""

from __future__ import annotations

import copy
import json

from hotstart.exchange.messages import PodState
from hotstart.operator.api import CompletionModelSpec, Engine
from hotstart.operator.app.leader import RESYNC_SECONDS
from hotstart.operator.core.backoff import RECONCILE
from hotstart.operator.core.errors import HotstartError
from hotstart.operator.core.revision import Images
from hotstart.operator.reconcile.builds import BuildServer
from hotstart.operator.reconcile.engine import EngineReconciler
from hotstart.operator.reconcile.exchange import Exchange
from hotstart.operator.reconcile.memory import Memory
from hotstart.operator.reconcile.model import ModelReconciler
from hotstart.operator.reconcile.observed import SELECTORS, WATCHED, Key, Observed, keys_of, version_of
from hotstart.operator.reconcile.routing import RouterPod, Routing
from hotstart.operator.reconcile.scaling import Scaler

from tests.operator.doubles import (
    NAMESPACE,
    SPEC,
    Clock,
    FakeAgents,
    FakeCluster,
    FakeEvents,
    FakeQueue,
    FakeStore,
    merge,
    stamp,
)


class Operator:
    """One process of the operator; `step` is one second of its life.

    As the leader does, it looks at everything at its start and at each resync. Between them only what an event, a turn
    or a timer has put into the queue is reconciled: what nothing wakes stays as it is.
    """

    def __init__(self, world) -> None:
        self.world, self.observed, self.memory = world, Observed(), Memory()
        cluster, clock, store, agents = world.cluster, world.clock, world.store, world.agents
        self.queue = FakeQueue(clock)
        images = Images("triton:1", "builder:1", "triton-trtllm:1", "builder-trtllm:1")
        self.models = ModelReconciler(cluster, world.events, clock, self.observed, self.memory, images, '{"keys":[]}')
        self.engines = EngineReconciler(cluster, store, world.events, clock, self.observed, self.memory, images)
        builds = BuildServer(cluster, store, agents, clock, self.observed, self.memory, self.queue)
        routing = Routing(agents, clock, self.observed, self.memory, self.queue)
        self.exchange = Exchange(cluster, store, agents, clock, self.observed, self.memory, self.queue, builds, routing)
        routing.routers = (RouterPod("router-uid", "10.0.0.1:9700"),)
        self.scaler = Scaler(cluster, world.events, clock, self.observed, self.memory, self.queue)
        self.failures: dict[Key, int] = {}  # in a row
        self.resynced_at: float | None = None
        for kind in WATCHED:
            for obj in world.cluster.all(kind):
                self.see(obj, False)
        world.cluster.watchers = [self.see]

    def see(self, obj, deleted) -> None:
        if obj["kind"] not in WATCHED or not is_watched(obj):
            return
        keys = keys_of(obj, self.observed)
        if deleted:
            self.observed.remove(obj, at=version_of(obj))
        else:
            self.observed.put(obj)
        for key in keys:
            self.queue.add(key)

    def resync(self) -> None:
        """Everything into the queue."""
        self.resynced_at = self.world.clock.now()
        for obj in (*self.world.cluster.all("CompletionModel"), *self.world.cluster.all("Engine")):
            self.queue.add(Key(obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"]))

    async def drain_queue(self) -> None:
        """Works on every key that is due; one that fails, or asks for another look, gets a timer."""
        for _ in range(200):
            if not self.queue.keys:
                return
            key = self.queue.keys.pop(0)
            try:
                reconciler = self.models if key.kind == "CompletionModel" else self.engines
                check_in = await reconciler.reconcile(key)
                self.failures.pop(key, None)
            except HotstartError:
                self.failures[key] = self.failures.get(key, 0) + 1
                check_in = RECONCILE.delay(self.failures[key])
            if check_in is not None:
                self.queue.add_in(key, check_in)
        raise AssertionError(f"the queue does not come to rest: {self.queue.keys}")

    async def step(self) -> None:
        if self.resynced_at is None:  # all are heard before anything is decided
            await self.exchange.turn()
            await self.scaler.turn()
        if self.resynced_at is None or self.world.clock.now() - self.resynced_at >= RESYNC_SECONDS:
            self.resync()
        self.queue.ring()
        await self.drain_queue()
        await self.exchange.turn()
        await self.scaler.turn()
        await self.drain_queue()


def is_watched(obj: dict) -> bool:
    """Whether the watch's label selector takes the object."""
    name, _, value = SELECTORS.get(obj["kind"], "").partition("=")
    return not name or obj["metadata"].get("labels", {}).get(name) == value


class World:
    """Everything, and time. ``settle`` runs until nothing changes."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.cluster = FakeCluster(self.clock)
        self.store = FakeStore()
        self.agents = FakeAgents(self)
        self.events = FakeEvents()
        self.inspections: dict[str, dict] = {}  # by URI: what the inspect Job's pod says; default: success
        self.build_exit: dict | None = None  # what a build Job's pod says instead of building
        self.missing_secrets: set[str] = set()
        self.operator: Operator | None = None

    def restart(self) -> None:
        self.operator = Operator(self)

    def engine_of_builder(self, uid: str) -> tuple[Engine, dict]:
        """The Engine that a builder's pod works for, and the pod."""
        pod = next(obj for obj in self.cluster.objects.values() if obj["metadata"]["uid"] == uid)
        name = pod["metadata"]["labels"]["hotstart.dev/engine"]
        return Engine.from_api(self.cluster.objects[("Engine", NAMESPACE, name)]), pod

    def converts(self, uid: str) -> bool:
        """Whether the container before the builder runs in that pod."""
        pod = next(obj for obj in self.cluster.objects.values() if obj["metadata"]["uid"] == uid)
        statuses = pod.get("status", {}).get("initContainerStatuses", ())
        return any(status["name"] == "convert" and "running" in status["state"] for status in statuses)

    def kubelet(self) -> None:
        """Controllers, scheduler and kubelet: one step of every Job and pod."""
        for job in self.cluster.all("Job"):
            self._move_job(job)
        for pod in self.cluster.all("Pod"):
            self._move_pod(pod)

    def _move_job(self, job: dict) -> None:
        name = job["metadata"]["name"]
        pods = [
            pod
            for pod in self.cluster.all("Pod")
            if any(owner["name"] == name for owner in pod["metadata"].get("ownerReferences", ()))
        ]
        if not pods and not job.get("status"):
            template = copy.deepcopy(job["spec"]["template"])
            owner = {"kind": "Job", "name": name, "uid": job["metadata"]["uid"], "controller": True}
            template["metadata"] |= {"name": f"{name}-x1", "ownerReferences": [owner]}
            self.cluster.create_now("Pod", template)
        for pod in pods:
            phase = pod.get("status", {}).get("phase")
            if phase in ("Succeeded", "Failed") and not job.get("status"):
                kind = "Complete" if phase == "Succeeded" else "Failed"
                done = {"type": kind, "status": "True", "lastTransitionTime": stamp(self.clock.now())}
                self.cluster.change("Job", name, {"status": {"conditions": [done]}})

    def _move_pod(self, pod: dict) -> None:
        labels = pod["metadata"]["labels"]
        status = pod.get("status", {})
        if labels["app.kubernetes.io/component"] == "serving":
            ready = self.agents.states.get(pod["metadata"]["uid"]) is PodState.READY
            self._set(pod, self._running(pod, ready))
        elif labels["app.kubernetes.io/component"] == "inspect":
            self._run_inspect(pod)
        elif self.build_exit is not None:
            self._end(pod, self.build_exit)
        elif self.agents.builders.get(pod["metadata"]["uid"], {}).get("done"):
            self._end(pod, {})
        elif not status:
            self._set(pod, self._running(pod, False))

    def _running(self, pod: dict, ready: bool) -> dict:
        since = pod["metadata"]["creationTimestamp"]
        old = {c["type"]: c for c in pod.get("status", {}).get("conditions", ())}
        value = "True" if ready else "False"
        if old.get("Ready", {}).get("status") == value:
            return pod["status"]
        conditions = [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": since},
            {"type": "Ready", "status": value, "lastTransitionTime": stamp(self.clock.now())},
        ]
        address = f"10.1.0.{int(pod['metadata']['uid'].removeprefix('uid-')) % 250}"
        return {"phase": "Running", "podIP": address, "startTime": since, "conditions": conditions}

    def _run_inspect(self, pod: dict) -> None:
        container = pod["spec"]["containers"][0]
        env = {entry["name"]: entry.get("value", "") for entry in container["env"]}
        for reference in container.get("envFrom", ()):
            secret = reference["secretRef"]["name"]
            if secret in self.missing_secrets:
                waiting = {"reason": "CreateContainerConfigError", "message": f'secret "{secret}" not found'}
                statuses = [{"name": "builder", "state": {"waiting": waiting}}]
                self._set(pod, {"phase": "Pending", "containerStatuses": statuses})
                return
        uri = json.loads(env["HOTSTART_CHECKPOINT"])["uri"]
        good = {"digest": digest(uri), "tokenizerDigest": "cd" * 32, "architecture": "LlamaForCausalLM", "files": 2}
        self._end(pod, self.inspections.get(uri, good))

    def _end(self, pod: dict, said: dict) -> None:
        if pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            return
        failed = "failure" in said
        code = 0 if not failed else 1 if said["failure"]["retryable"] else 64
        ended = {
            "exitCode": code,
            "reason": "Error" if failed else "Completed",
            "message": json.dumps(said),
            "finishedAt": stamp(self.clock.now()),
        }
        statuses = [{"name": "builder", "state": {"terminated": ended}}]
        self._set(pod, {"phase": "Failed" if failed else "Succeeded", "containerStatuses": statuses})

    def _set(self, pod: dict, status: dict) -> None:
        if pod.get("status") != status:
            self.cluster.change("Pod", pod["metadata"]["name"], {"status": None})
            self.cluster.change("Pod", pod["metadata"]["name"], {"status": status})

    async def run(self, seconds: int) -> None:
        """So many seconds."""
        if self.operator is None:
            self.restart()
        for _ in range(seconds):
            self.kubelet()
            await self.operator.step()
            self.clock.seconds += 1

    async def run_until(self, what, limit: int = 60) -> None:
        """Until ``what`` holds."""
        for _ in range(limit):
            await self.run(1)
            if what():
                return
        raise AssertionError(f"not within {limit} s: {self.conditions()} {self.cluster.writes[-10:]}")

    # ---- what tests look at

    def model(self, name: str = "m") -> dict:
        return copy.deepcopy(self.cluster.objects[("CompletionModel", NAMESPACE, name)])

    def conditions(self, name: str = "m") -> dict[str, dict]:
        return {c["type"]: c for c in self.model(name).get("status", {}).get("conditions", ())}

    def is_ready(self, name: str = "m") -> bool:
        model = self.model(name)
        ready = self.conditions(name).get("Ready", {})
        current = ready.get("observedGeneration") == model["metadata"]["generation"]
        return current and ready.get("status") == "True"

    def pods(self, name: str = "m") -> list[dict]:
        found = self.cluster.all("Pod")
        return [
            p for p in found if p["metadata"]["labels"]["app.kubernetes.io/component"] == "serving" and owner(p) == name
        ]

    def jobs(self, component: str) -> list[str]:
        return [
            job["metadata"]["name"]
            for job in self.cluster.all("Job")
            if job["metadata"]["labels"]["app.kubernetes.io/component"] == component
        ]

    def apply(self, name: str = "m", **changes) -> None:
        """The model with these changes of spec, as a user applies it."""
        spec = merge(SPEC, changes)
        full = CompletionModelSpec.model_validate(spec).to_api()
        if ("CompletionModel", NAMESPACE, name) in self.cluster.objects:
            self.cluster.change("CompletionModel", name, {"spec": full})
            return
        self.cluster.create_now(
            "CompletionModel", {"apiVersion": "hotstart.dev/v1alpha1", "metadata": {"name": name}, "spec": full}
        )


def owner(obj: dict) -> str:
    return next((o["name"] for o in obj["metadata"].get("ownerReferences", ())), "")


def digest(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()
