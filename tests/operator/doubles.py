"""The world of the operator in memory: an API server with resource versions, kubelet, agents, store, clock.

The API server keeps what matters of the real one: optimistic concurrency, AlreadyExists, UIDs, status apart, garbage
collection by owner, a write that changes nothing makes no new version. `kubelet` moves Jobs and pods on by one step.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
from datetime import UTC, datetime

from hotstart.engines.collection import StoredObject
from hotstart.engines.key import key_inputs
from hotstart.engines.manifest import Manifest, ManifestFile
from hotstart.exchange.messages import (
    BuildPhase,
    BuildReport,
    BuiltFile,
    ModelSecond,
    PodReport,
    PodState,
    RouterReport,
)
from hotstart.operator.api import Engine
from hotstart.operator.core.diff import covers
from hotstart.operator.core.errors import Conflict, Forbidden, HotstartError, StoreFailed
from hotstart.operator.reconcile.observed import Key
from hotstart.operator.reconcile.ports import OpenUpload

NAMESPACE = "team"
START = 1_800_000_000.0
CLUSTER_SCOPED = ("Node", "Namespace")
WITH_STATUS = ("CompletionModel", "Engine", "Pod", "Job")  # status is a subresource: no other write changes it


class Clock:
    def __init__(self) -> None:
        self.seconds = START

    def now(self) -> float:
        return self.seconds


def stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def merge(old, patch):
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    result = dict(old) if isinstance(old, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merge(result.get(name), value)
    return result


class Died(BaseException):
    """The operator's process ended here."""


class FakeCluster:
    """Implements the port Cluster. ``writes`` lists every write that changed something."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.objects: dict[tuple[str, str, str], dict] = {}
        self.writes: list[str] = []
        self.attempts = 0
        self.fail_at: dict[int, BaseException] = {}
        self.watchers: list = []
        self.forbidden: set[tuple[str, str]] = set()  # kind and namespace ('' is all) that may not be listed
        self._versions = itertools.count(100)
        self._uids = itertools.count(1)
        self.create_now("Namespace", {"metadata": {"name": NAMESPACE}})

    def create_now(self, kind: str, body: dict) -> dict:
        """Without counting as a write of the operator."""
        obj = {"apiVersion": "v1", **copy.deepcopy(dict(body)), "kind": kind}
        meta = obj["metadata"]
        if kind not in CLUSTER_SCOPED:
            meta.setdefault("namespace", NAMESPACE)
        meta.update(uid=f"uid-{next(self._uids)}", generation=1, creationTimestamp=stamp(self.clock.now()))
        return self._store(obj)

    def _store(self, obj: dict) -> dict:
        obj["metadata"]["resourceVersion"] = str(next(self._versions))
        self.objects[self._place(obj)] = obj
        self._tell(obj, deleted=False)
        return copy.deepcopy(obj)

    def _place(self, obj: dict) -> tuple[str, str, str]:
        return (obj["kind"], obj["metadata"].get("namespace", ""), obj["metadata"]["name"])

    def _tell(self, obj: dict, *, deleted: bool) -> None:
        for watcher in self.watchers:
            watcher(copy.deepcopy(obj), deleted)

    def change(self, kind: str, name: str, patch: dict, namespace: str | None = None) -> dict:
        """What somebody else changes; a change of spec raises the generation."""
        place = (kind, "" if kind in CLUSTER_SCOPED else namespace or NAMESPACE, name)
        old = self.objects[place]
        new = merge(copy.deepcopy(old), patch)
        if new == old:
            return new
        if new.get("spec") != old.get("spec"):
            new["metadata"]["generation"] += 1
        return self._store(new)

    def drop(self, kind: str, name: str, namespace: str = NAMESPACE) -> None:
        obj = self.objects.pop((kind, namespace, name))
        self._tell(obj, deleted=True)
        for other in list(self.objects.values()):
            owners = other["metadata"].get("ownerReferences", ())
            if any(owner["uid"] == obj["metadata"]["uid"] for owner in owners):
                self.drop(other["kind"], other["metadata"]["name"], other["metadata"]["namespace"])

    def all(self, kind: str) -> list[dict]:
        return [copy.deepcopy(obj) for place, obj in sorted(self.objects.items()) if place[0] == kind]

    def _attempt(self, what: str) -> None:
        self.attempts += 1
        if (error := self.fail_at.pop(self.attempts, None)) is not None:
            raise error

    # ---- the port

    async def list(self, kind, *, namespace="", labels="", fields=""):
        if (kind, namespace) in self.forbidden:
            raise Forbidden(f"{kind} may not be listed", "AccessDenied")
        found = (obj for obj in self.all(kind) if not namespace or obj["metadata"].get("namespace") == namespace)
        return tuple(obj for obj in found if has_labels(obj, labels))

    async def get(self, kind, namespace, name):
        return copy.deepcopy(self.objects.get((kind, namespace, name)))

    async def create(self, body):
        self._attempt("create")
        body = json.loads(json.dumps(body))
        if self._place(body) in self.objects:
            raise Conflict(f"{self._place(body)} already exists")
        self.writes.append(f"create {body['kind']}/{body['metadata']['name']}")
        return self.create_now(body["kind"], body)

    async def apply(self, body):
        self._attempt("apply")
        body = json.loads(json.dumps(body))
        old = self.objects.get(self._place(body))
        if old is None:
            self.writes.append(f"apply {body['kind']}/{body['metadata']['name']}")
            return self.create_now(body["kind"], body)
        if covers(old, body):
            return copy.deepcopy(old)
        self.writes.append(f"apply {body['kind']}/{body['metadata']['name']}")
        return self._store(merge(copy.deepcopy(old), body))

    async def patch(self, kind, namespace, name, body):
        self._attempt("patch")
        if (kind, namespace, name) not in self.objects:
            return None
        self.writes.append(f"patch {kind}/{name}")
        body = json.loads(json.dumps(body))
        if kind in WITH_STATUS:
            body.pop("status", None)
        changed = self.change(kind, name, body, namespace)
        if changed["metadata"].get("deletionTimestamp") and not changed["metadata"].get("finalizers"):
            self.drop(kind, name, namespace)
        return changed

    async def patch_status(self, kind, namespace, name, body):
        self._attempt("status")
        if (kind, namespace, name) not in self.objects:
            return None
        assert set(body) == {"status"}
        self.writes.append(f"status {kind}/{name}")
        return self.change(kind, name, json.loads(json.dumps(body)), namespace)

    async def delete(self, kind, namespace, name, uid):
        self._attempt("delete")
        obj = self.objects.get((kind, namespace, name))
        if obj is None:
            return None
        if obj["metadata"]["uid"] != uid:
            raise Conflict(f"{kind} {name} has another UID")
        self.writes.append(f"delete {kind}/{name}")
        if not obj["metadata"].get("finalizers"):
            self.drop(kind, name, namespace)
            return None
        return self.change(kind, name, {"metadata": {"deletionTimestamp": stamp(self.clock.now())}}, namespace)

    async def set_scale(self, namespace, name, replicas):
        self._attempt("scale")
        if ("CompletionModel", namespace, name) not in self.objects:
            return
        self.writes.append(f"scale {name} {replicas}")
        self.change("CompletionModel", name, {"spec": {"replicas": replicas}}, namespace)


def has_labels(obj: dict, selector: str) -> bool:
    """Whether an object's labels are those of a selector ``name=value,...``; the empty one takes all."""
    labels = obj["metadata"].get("labels", {})
    pairs = (term.partition("=") for term in selector.split(",") if term)
    return all(name in labels and (not equals or labels[name] == value) for name, equals, value in pairs)


class FakeStore:
    """Implements the port Store."""

    location = "s3://engines/"

    def __init__(self) -> None:
        self.objects: dict[str, str] = {}
        self.modified: dict[str, float] = {}  # when an object was last written; the start, where it is not said
        self.uploads: list[OpenUpload] = []
        self.failure: HotstartError | None = None
        self.denied: set[str] = set()  # writes that are refused, by their name in the port
        self.died_after: set[str] = set()  # writes after which the operator's process ends, once each

    def _die(self, what: str) -> None:
        if what in self.died_after:
            self.died_after.discard(what)
            raise Died

    def _write(self, what: str) -> None:
        if what in self.denied:
            raise StoreFailed(f"the store refuses {what}: check the Secret's rights on the bucket", "AccessDenied")

    async def get_manifest(self, prefix):
        if self.failure:
            raise self.failure
        return self.objects.get(prefix + "manifest.json")

    async def put_manifest(self, prefix, text):
        self._write("put_manifest")
        standing = self.objects.setdefault(prefix + "manifest.json", text)
        if json.loads(standing)["files"] != json.loads(text)["files"]:
            raise StoreFailed(f"another engine stands at {prefix}", "StoreConflict")
        self._die("put_manifest")
        return standing

    async def get_quarantine(self, prefix):
        if self.failure:
            raise self.failure
        return self.objects.get(prefix + "quarantine.json")

    async def put_quarantine(self, prefix, text):
        if self.failure:
            raise self.failure
        self.objects[prefix + "quarantine.json"] = text
        self._die("put_quarantine")

    async def create_upload(self, object_key):
        self._write("create_upload")
        upload = f"upload-of-{object_key}"
        self.uploads.append(OpenUpload(object_key, upload, START))
        return upload

    async def complete_upload(self, upload):
        self._write("complete_upload")
        assert upload.upload_id == f"upload-of-{upload.object_key}"
        if not upload.etags:
            raise StoreFailed("an upload without parts cannot be completed", "StoreUnreachable")
        self.uploads = [open_one for open_one in self.uploads if open_one.upload_id != upload.upload_id]
        self.objects[upload.object_key] = "x" * upload.size

    async def list_objects(self, prefix):
        self._check()
        now = self.modified or {}
        found = ((key, text) for key, text in sorted(self.objects.items()) if key.startswith(prefix))
        return tuple(StoredObject(key, len(text), now.get(key, START)) for key, text in found)

    async def list_uploads(self, prefix):
        self._check()
        return tuple(upload for upload in self.uploads if upload.object_key.startswith(prefix))

    async def abort_upload(self, object_key, upload_id):
        self._check()
        self.uploads = [upload for upload in self.uploads if upload.upload_id != upload_id]

    async def delete_prefix(self, prefix):
        self._check()
        gone = [key for key in self.objects if key.startswith(prefix)]
        for key in gone:
            del self.objects[key]
        return len(gone)

    def _check(self):
        if self.failure:
            raise self.failure

    def presign_part(self, object_key, upload_id, number):
        return f"http://store/{object_key}?upload={upload_id}&part={number}"

    def presign_put(self, object_key):
        return f"http://store/{object_key}?put"

    def presign_get(self, object_key):
        return f"http://store/{object_key}"


class FakeAgents:
    """Implements the port Agents: pods become ready in steps, builders upload one file, one router obeys."""

    def __init__(self, world) -> None:
        self.world = world
        self.states: dict[str, PodState] = {}
        self.failures: dict[str, object] = {}  # by engine key, or "*"
        self.said: dict[str, dict] = {}  # what a pod's agent says in place of what it would, by UID
        self.in_flight: dict[str, int] = {}
        self.silent = False  # all of them
        self.mute: set[str] = set()  # "pod" or "builder": these are silent
        self.routes = ()
        self.router_generation = 0
        self.seconds: list = []
        self.routers: dict[str, float] = {}  # requests in flight at each router, by UID; others are then silent
        self.builders: dict[str, dict] = {}
        self.pod_requests: list = []

    async def ask_pod(self, address, uid, request):
        if self.silent or "pod" in self.mute:
            return None
        self.pod_requests.append((uid, request))
        key = request.assignment.engine_key if request.assignment else ""
        failure = self.failures.get(key) or self.failures.get("*")
        state = self.states.get(uid, PodState.EMPTY)
        if failure is not None and state is not PodState.READY:
            state = PodState.FAILED
        elif request.assignment and (request.files or state is not PodState.EMPTY):
            state = {PodState.EMPTY: PodState.FETCHING, PodState.FETCHING: PodState.LOADING}.get(state, PodState.READY)
        report = PodReport(
            pod_uid=uid,
            state=state,
            engine_key=key,
            phases={"fetch": 1.0, "load": 0.5},
            failure=failure if state is PodState.FAILED else None,
            in_flight=self.in_flight.get(uid, 0),
        ).model_copy(update=self.said.get(uid, {}))
        self.states[uid] = report.state
        return report

    async def ask_router(self, address, uid, request):
        if self.silent:
            return None
        if self.routers and uid not in self.routers:
            return None
        self.routes, self.router_generation = request.routes, request.generation
        seconds = tuple(s for s in self.seconds if s.second > request.cursor)
        cursor = max([request.cursor, *(s.second for s in seconds)])
        if self.routers:
            cursor = int(self.world.clock.now()) - 1
            numbers = range(max(request.cursor + 1, cursor - 5), cursor + 1)
            busy = self.routers[uid]
            seconds = tuple(ModelSecond(second=n, model=f"{NAMESPACE}/m", in_flight_sum=busy) for n in numbers)
        return RouterReport(pod_uid=uid, generation=request.generation, cursor=cursor, seconds=seconds)

    async def ask_builder(self, address, uid, request):
        if self.silent or "builder" in self.mute:
            return None
        if self.world.converts(uid):
            key = self.world.engine_of_builder(uid)[0].spec.key
            return BuildReport(pod_uid=uid, engine_key=key, phase=BuildPhase.CONVERTING, percent=12, eta_seconds=90)
        job = self.builders.setdefault(uid, {"id": "", "url": "", "done": False})
        engine, pod = self.world.engine_of_builder(uid)
        container = next(c for c in pod["spec"]["containers"] if c["name"] == "builder")
        tokenizer = next(e["value"] for e in container["env"] if e["name"] == "HOTSTART_TOKENIZER_DIGEST")
        path = "tokenizer.json" if container["command"][1] == "bundle" else "model.bin"
        job["id"] = request.upload_ids.get(path, job["id"])
        job["url"] = next((part.url for part in request.parts), job["url"])
        job["done"] = job["done"] or request.published
        manifest = make_manifest(engine, path=path, tokenizer=tokenizer)
        uploaded = bool(job["url"])
        etags = ("e1",) if uploaded else ()
        wants = () if uploaded or not job["id"] else ({"path": path, "number": 1},)
        return BuildReport.model_validate(
            {
                "pod_uid": uid,
                "engine_key": engine.spec.key,
                "phase": BuildPhase.UPLOADED if uploaded else BuildPhase.UPLOADING,
                "percent": 90,
                "files": [
                    BuiltFile(path=path, size=10, sha256="ab" * 32, upload_id=job["id"], etags=etags).model_dump()
                ],
                "wants_parts": wants,
                "manifest": manifest.to_json() if uploaded else "",
            }
        )


def make_manifest(engine: Engine, *, path: str = "model.bin", tokenizer: str = "") -> Manifest:
    return Manifest(
        key=engine.spec.key,
        inputs=key_inputs(engine.spec.checkpoint_digest, engine.spec.recipe.to_engine_recipe()),
        files=(ManifestFile(path, 10, "ab" * 32),),
        tokenizer_digest=tokenizer or engine.spec.tokenizer_digest,
        build_seconds=3.0,
    )


class FakeEvents:
    def __init__(self) -> None:
        self.notes: list = []

    async def send(self, obj, notes, now):
        self.notes += notes


class FakeQueue:
    """The queue by the world's clock: keys in order, each once; timers ring when they are told to."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.keys: list[Key] = []
        self.due: dict[Key, float] = {}

    def add(self, key: Key) -> None:
        if key not in self.keys:
            self.keys.append(key)

    def add_in(self, key: Key, seconds: float) -> None:
        """The key once so many seconds have passed, or an earlier timer of it says; at once after none."""
        if seconds <= 0:
            self.add(key)
        else:
            self.due[key] = min(self.due.get(key, math.inf), self.clock.now() + seconds)

    def ring(self) -> None:
        """Adds the keys whose time has come."""
        for key in [key for key, due in self.due.items() if due <= self.clock.now()]:
            del self.due[key]
            self.add(key)


SPEC = {
    "checkpoint": {"uri": "s3://models/tiny/", "secretName": "reader"},
    "engine": {"runtime": "ctranslate2", "quantization": "int8"},
    "scaling": {"mode": "External"},
}
