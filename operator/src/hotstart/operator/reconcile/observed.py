"""What was last seen of every watched object: the operator's view of the cluster, in memory.

Watches feed it, and so does the answer to each write of our own: what was created is seen at once, so that a view never
lags behind our own writes (what other controllers call expectations). Older versions never replace newer ones. A resync
replaces a whole kind, because a watch that was broken does not tell what was deleted meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hotstart.operator.api.model_spec import Management
from hotstart.operator.core.facts import owner_of
from hotstart.operator.core.writes import Object

#: Kinds that are watched.
WATCHED = ("CompletionModel", "Engine", "Pod", "Job", "Service", "PodDisruptionBudget", "Node")

#: Labels by which watches and lists are narrowed at the API server.
SELECTORS = {
    "Pod": "app.kubernetes.io/managed-by=hotstart",
    "Job": "app.kubernetes.io/managed-by=hotstart",
    "Service": "app.kubernetes.io/managed-by=hotstart",
    "PodDisruptionBudget": "app.kubernetes.io/managed-by=hotstart",
}


@dataclass(frozen=True, order=True)
class Key:
    """What is reconciled: a CompletionModel or an Engine."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.namespace}/{self.name}"


def version_of(obj: Object) -> int:
    """The resource version as a number: comparable within a kind."""
    text = str(obj.get("metadata", {}).get("resourceVersion", "0"))
    return int(text) if text.isdigit() else 0


@dataclass
class Observed:
    """Objects by kind, namespace and name. ``paused``: every model is seen as Paused, whatever its spec says."""

    paused: bool = False
    _objects: dict[str, dict[tuple[str, str], dict[str, Any]]] = field(default_factory=dict)
    _gone: dict[str, float] = field(default_factory=dict)  # UIDs that are gone, and up to which version of the object

    def put(self, obj: Object) -> bool:
        """Takes a version of an object in; False where a newer one, or its end, was seen before."""
        meta = obj["metadata"]
        if version_of(obj) <= self._gone.get(meta.get("uid", ""), -1):
            return False
        place = (meta.get("namespace", ""), meta["name"])
        kind = self._objects.setdefault(obj["kind"], {})
        known = kind.get(place)
        if (
            known is not None
            and known["metadata"].get("uid") == meta.get("uid")
            and version_of(known) >= version_of(obj)
        ):
            return False
        kind[place] = self._see(obj)
        return True

    def amend(self, obj: Object) -> None:
        """What a write of our own changed, where its answer did not hold the object: the same version, so that the
        watch's next one replaces it."""
        meta = obj["metadata"]
        place = (meta.get("namespace", ""), meta["name"])
        known = self._objects.get(obj["kind"], {}).get(place)
        if known is not None and version_of(known) == version_of(obj):
            self._objects[obj["kind"]][place] = self._see(obj)

    def _see(self, obj: Object) -> dict[str, Any]:
        seen = strip(obj)
        if self.paused and obj["kind"] == "CompletionModel" and "spec" in seen:
            seen["spec"] = {**seen["spec"], "management": Management.PAUSED.value}
        return seen

    def remove(self, obj: Object, *, at: float = math.inf) -> None:
        """The object is gone: for ever, or at a version, as a watch says it also where an object loses its label."""
        meta = obj["metadata"]
        if meta.get("uid"):
            self._gone[meta["uid"]] = at
            while len(self._gone) > 10_000:
                self._gone.pop(next(iter(self._gone)))
        place = (meta.get("namespace", ""), meta["name"])
        known = self._objects.get(obj["kind"], {}).get(place)
        if known is not None and known["metadata"].get("uid") == meta.get("uid"):
            del self._objects[obj["kind"]][place]

    def forget(self, obj: Object) -> None:
        """Nothing is known of the object any longer; it may stand or not."""
        meta = obj["metadata"]
        self._objects.get(obj["kind"], {}).pop((meta.get("namespace", ""), meta["name"]), None)

    def replace(self, kind: str, objects: Iterable[Object], *, namespace: str = "", before: int | None = None) -> None:
        """What stands now of a kind, in a namespace or in all, by a list.

        What the list lacks is gone, unless it was seen in a version newer than ``before`` (the list's own version).
        """
        listed = {obj["metadata"].get("uid"): obj for obj in objects}
        for known in self.all(kind, namespace or None):
            if known["metadata"].get("uid") not in listed and (before is None or version_of(known) <= before):
                self.remove(known, at=math.inf if before is None else before)
        for obj in listed.values():
            self.put({**obj, "kind": kind})

    def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        """One object."""
        return self._objects.get(kind, {}).get((namespace, name))

    def all(self, kind: str, namespace: str | None = None) -> list[dict[str, Any]]:
        """All objects of a kind, sorted by namespace and name."""
        found = self._objects.get(kind, {})
        return [found[place] for place in sorted(found) if namespace is None or place[0] == namespace]

    def owned(self, kind: str, namespace: str, owner_kind: str, owner: str) -> list[dict[str, Any]]:
        """Objects whose controller is the named one."""
        return [obj for obj in self.all(kind, namespace) if owner_of(obj, owner_kind) == owner]


def strip(obj: Object) -> dict[str, Any]:
    """The object without what nobody here reads and what takes most of the memory."""
    meta = {name: value for name, value in obj["metadata"].items() if name != "managedFields"}
    return {**obj, "metadata": meta}


def keys_of(obj: Object, observed: Observed) -> tuple[Key, ...]:
    """Which keys an event about this object concerns."""
    kind, meta = obj["kind"], obj["metadata"]
    namespace, name = meta.get("namespace", ""), meta["name"]
    if kind == "CompletionModel":  # and the Engines that wait for a model to want them, or for its tokenizer
        engines = observed.all("Engine", namespace)
        waiting = (e["metadata"]["name"] for e in engines if not is_true(e) or lacks_tokenizer(e, obj))
        return (Key(kind, namespace, name), *(Key("Engine", namespace, engine) for engine in waiting))
    if kind == "Engine":
        names = (model["metadata"]["name"] for model in observed.all("CompletionModel", namespace))
        return (Key(kind, namespace, name), *(Key("CompletionModel", namespace, model) for model in names))
    if kind == "Node":
        owners = {
            owner_key(pod, observed) for pod in observed.all("Pod") if pod.get("spec", {}).get("nodeName") == name
        }
        return tuple(sorted(key for key in owners if key is not None and key.kind == "CompletionModel"))
    key = owner_key(obj, observed)
    return () if key is None else (key,)


def is_true(obj: Object) -> bool:
    """Whether the object's Ready condition is True."""
    conditions = obj.get("status", {}).get("conditions", ())
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def lacks_tokenizer(engine: Object, model: Object) -> bool:
    """Whether the Engine is of the model's checkpoint, and does not say that the checkpoint's tokenizer stands."""
    checkpoint, status = model.get("status", {}).get("checkpoint", {}), engine.get("status", {})
    if engine.get("spec", {}).get("checkpointDigest", "") != checkpoint.get("digest"):
        return False
    standing = {status.get("tokenizerDigest"), *(bundle["tokenizerDigest"] for bundle in status.get("bundles", ()))}
    return checkpoint.get("tokenizerDigest") not in standing


def owner_key(obj: Object, observed: Observed) -> Key | None:
    """The model or Engine that an object belongs to, through its Job where it is a Job's pod."""
    namespace = obj["metadata"].get("namespace", "")
    job = owner_of(obj, "Job")
    if job:
        standing = observed.get("Job", namespace, job)
        return None if standing is None else owner_key(standing, observed)
    for kind in ("CompletionModel", "Engine"):
        name = owner_of(obj, kind)
        if name:
            return Key(kind, namespace, name)
    return None
