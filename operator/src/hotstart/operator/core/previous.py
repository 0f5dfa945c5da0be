"""The revision that serves, where the spec no longer describes it: more pods like it are copied from one of them. Pure.

So lost replicas are replaced, and pods leave cordoned nodes, while the next revision's engine is built.
"""

from __future__ import annotations

from collections.abc import Iterable

from hotstart.exchange.names import ANNOTATION_ASSIGNMENT, ROLE_DRAINING
from hotstart.operator.api import Engine
from hotstart.operator.core.engine_status import is_stored
from hotstart.operator.core.facts import PodFacts
from hotstart.operator.core.pod_states import is_serving
from hotstart.operator.core.quarantine import avoided_nodes
from hotstart.operator.core.revision import Bundle, Target


def copy_target(pods: tuple[PodFacts, ...], engines: Iterable[Engine], served: str, now: float) -> Target | None:
    """The target by the newest pod that serves, or is of the revision ``served``; None where none can be copied.

    Its engine must stand as the pod fetched it.
    """
    stored = {engine.metadata.name: engine for engine in engines if is_stored(engine)}
    found = [pod for pod in pods if is_copied(pod, stored.get(pod.engine), served, now)]
    pod = max(found, key=lambda pod: (is_serving(pod, now), pod.revision == served, pod.created), default=None)
    if pod is None or pod.assignment is None:
        return None
    return Target(
        revision=pod.revision,
        engine_key=pod.assignment.engine_key,
        engine_name=pod.engine,
        manifest_sha256=pod.assignment.manifest_sha256,
        bundle=Bundle(pod.assignment.tokenizer_digest, pod.assignment.bundle_sha256),
        avoid=avoided_nodes(stored[pod.engine], pods),
        template=pod.manifest,
    )


def is_copied(pod: PodFacts, engine: Engine | None, served: str, now: float) -> bool:
    """Whether more pods can be made like this one."""
    if engine is None or pod.assignment is None or ANNOTATION_ASSIGNMENT not in pod.manifest["metadata"]["annotations"]:
        return False
    standing = not pod.deleting and pod.role != ROLE_DRAINING and bool(pod.revision)
    same = engine.status.manifest_digest == pod.assignment.manifest_sha256
    return standing and same and (is_serving(pod, now) or pod.revision == served)
