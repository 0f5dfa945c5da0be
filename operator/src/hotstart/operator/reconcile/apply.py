"""Carries out the writes that a decision wants, and takes each answer into the observed view at once."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from hotstart.operator.core.errors import Conflict, HotstartError
from hotstart.operator.core.writes import Apply, Create, Delete, Patch, Write
from hotstart.operator.reconcile.observed import Observed
from hotstart.operator.reconcile.ports import Cluster

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Applied:
    """The writes that changed something, and why the one after them failed."""

    done: tuple[Write, ...] = ()
    failure: HotstartError | None = None

    @property
    def refusal(self) -> HotstartError | None:
        """The failure, where it is to be said: what merely changed meanwhile is gathered again."""
        return None if isinstance(self.failure, Conflict) else self.failure


async def apply_writes(cluster: Cluster, observed: Observed, writes: Iterable[Write]) -> Applied:
    """Makes the writes in their order, until one fails; those before it stand, and are told of."""
    done: list[Write] = []
    for write in writes:
        try:
            if await apply_write(cluster, observed, write):
                done.append(write)
        except HotstartError as error:
            return Applied(tuple(done), error)
    return Applied(tuple(done))


async def apply_write(cluster: Cluster, observed: Observed, write: Write) -> bool:
    """One write; False where it had been made before."""
    match write:
        case Create(body=body):
            return await apply_create(cluster, observed, write)
        case Apply(body=body):
            observed.put(await cluster.apply(body))
        case Patch(kind=kind, namespace=namespace, name=name, body=body):
            changed = await cluster.patch(kind, namespace, name, body)
            if changed is None:
                forget(observed, kind, namespace, name)
                return False
            observed.put(changed)
        case Delete(kind=kind, namespace=namespace, name=name, uid=uid):
            left = await cluster.delete(kind, namespace, name, uid)
            if left is not None:
                observed.put(left)
            else:
                observed.remove({"kind": kind, "metadata": {"namespace": namespace, "name": name, "uid": uid}})
    return True


async def apply_create(cluster: Cluster, observed: Observed, write: Create) -> bool:
    """Creates; where the name is taken, what stands is read: the view was stale."""
    body = write.body
    kind, meta = body["kind"], body["metadata"]
    try:
        observed.put(await cluster.create(body))
    except Conflict:
        standing = await cluster.get(kind, meta.get("namespace", ""), meta["name"])
        log.info("object stands already kind=%s namespace=%s name=%s", kind, meta.get("namespace"), meta["name"])
        if standing is None:
            raise
        observed.put({**standing, "kind": kind})
        return False
    return True


def forget(observed: Observed, kind: str, namespace: str, name: str) -> None:
    """The object is gone, though no watch said so."""
    known = observed.get(kind, namespace, name)
    if known is not None:
        observed.remove(known)
