"""Carries out the writes that a decision wants, and takes each answer into the observed view at once."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from hotstart.operator.core.errors import Conflict, HotstartError, Taken
from hotstart.operator.core.facts import controllers_of
from hotstart.operator.core.writes import Apply, Create, Delete, Object, Patch, Write
from hotstart.operator.reconcile.observed import SELECTORS, Observed
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
    """Makes the writes in their order, until one fails; those before it stand, and are told of.

    One whose name is taken holds up nothing but itself.
    """
    done: list[Write] = []
    taken: Taken | None = None
    for write in writes:
        try:
            if await apply_write(cluster, observed, write):
                done.append(write)
        except Taken as error:
            taken = taken or error
        except HotstartError as error:
            return Applied(tuple(done), error)
    return Applied(tuple(done), taken)


async def apply_write(cluster: Cluster, observed: Observed, write: Write) -> bool:
    """One write; False where it had been made before."""
    match write:
        case Create(body=body):
            return await apply_create(cluster, observed, write)
        case Apply(body=body):
            await apply_ours(cluster, observed, body)
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


async def apply_ours(cluster: Cluster, observed: Observed, body: Object) -> None:
    """Applies; what the view does not hold for ours is read first, for an apply takes over whatever has the name.

    One with our label whose owner was taken off is taken back.

    Raises:
        Taken: it is somebody else's.
    """
    kind, meta = body["kind"], body["metadata"]
    known = observed.get(kind, meta["namespace"], meta["name"])
    owners = controllers_of(body)
    if owners and (known is None or not controllers_of(known) <= owners):
        check_ours(await cluster.get(kind, meta["namespace"], meta["name"]), body)
    observed.put(await cluster.apply(body))


def check_ours(standing: Object | None, body: Object) -> None:
    """Raises Taken where what stands does not belong to whom ``body`` belongs to."""
    owners = controllers_of(body)
    if standing is not None and not owners <= controllers_of(standing):
        meta, whose = body["metadata"], " ".join(" ".join(owner) for owner in owners)
        raise Taken(f"{body['kind']} {meta['name']} stands already and does not belong to {whose}: delete it.")


def check_seen(standing: Object, kind: str) -> None:
    """Raises Taken where what stands lacks the label without which no watch tells of it."""
    name, _, value = SELECTORS.get(kind, "").partition("=")
    meta = standing["metadata"]
    if name and meta.get("labels", {}).get(name) != value:
        raise Taken(f"{kind} {meta['name']} stands already without the label {name}={value}: label it, or delete it.")


async def apply_create(cluster: Cluster, observed: Observed, write: Create) -> bool:
    """Creates; where the name is taken, what stands is read: the view was stale.

    Raises:
        Taken: it is somebody else's, or cannot be seen.
    """
    body = write.body
    kind, meta = body["kind"], body["metadata"]
    try:
        observed.put(await cluster.create(body))
    except Conflict:
        standing = await cluster.get(kind, meta.get("namespace", ""), meta["name"])
        log.info("object stands already kind=%s namespace=%s name=%s", kind, meta.get("namespace"), meta["name"])
        if standing is None:
            raise
        check_ours(standing, body)
        check_seen(standing, kind)
        observed.put({**standing, "kind": kind})
        return False
    return True


def forget(observed: Observed, kind: str, namespace: str, name: str) -> None:
    """The object is gone, though no watch said so."""
    known = observed.get(kind, namespace, name)
    if known is not None:
        observed.remove(known)
