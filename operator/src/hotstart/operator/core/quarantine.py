"""What failed its verification is kept away from users: an engine's key, or a node for one engine. Pure.

A build that fails leaves a marker in the store, where its engine would stand: it outlives the Engine object
and is seen by every operator. It has a number; the annotation ``ANNOTATION_LIFT`` with that number allows one more
build, and says nothing about the next quarantine, whose number is one higher.

A load that fails on a node that other nodes may not share (a bad GPU, another CPU) is noted in ``ANNOTATION_NODES`` of
the Engine: no more pods with that engine are placed there until somebody takes the node out of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hotstart.operator.api import Engine, Reason
from hotstart.operator.core.facts import JobFacts, PodFacts
from hotstart.operator.core.jobs import Failure
from hotstart.operator.core.writes import Patch

ANNOTATION_LIFT = "hotstart.dev/lift-quarantine"
ANNOTATION_NODES = "hotstart.dev/quarantined-nodes"
MOST_NODES = 16  # of one engine; if it fails on more, it is not the nodes
LONGEST_MESSAGE = 400  # characters; a condition holds the sentence about lifting it too


@dataclass(frozen=True)
class Quarantine:
    """Of one engine's key. ``job`` is the UID of the build Job that failed; ``at`` is in seconds since the epoch."""

    number: int
    job: str
    message: str
    at: float

    def to_json(self) -> str:
        """The marker's text."""
        return json.dumps(asdict(self), sort_keys=True)


def parse_quarantine(text: str | None) -> Quarantine | None:
    """The quarantine in a marker; None where there is no marker. One that cannot be read is a quarantine too."""
    if text is None:
        return None
    try:
        value: Any = json.loads(text)
        return Quarantine(int(value["number"]), str(value["job"]), str(value["message"]), float(value["at"]))
    except (ValueError, KeyError, TypeError) as error:
        return Quarantine(1, "", f"The quarantine's marker in the store cannot be read ({error}).", 0.0)


def is_lifted(quarantine: Quarantine, engine: Engine) -> bool:
    """Whether somebody allows one more build after this quarantine."""
    return engine.metadata.annotations.get(ANNOTATION_LIFT, "").strip() == str(quarantine.number)


def make_quarantine(standing: Quarantine | None, job: JobFacts, failure: Failure, now: float) -> Quarantine:
    """The quarantine for a build that failed its verification."""
    number = 1 if standing is None else standing.number + 1
    return Quarantine(number, job.uid, failure.message[:LONGEST_MESSAGE], failure.at or now)


def find_later_jobs(quarantine: Quarantine, jobs: tuple[JobFacts, ...]) -> tuple[JobFacts, ...]:
    """The Jobs after the one that led to the quarantine; all of them where that one is gone."""
    spent = max((job.attempt for job in jobs if job.uid == quarantine.job), default=-1)
    return tuple(job for job in jobs if job.attempt > spent)


def describe_quarantine(quarantine: Quarantine, engine: Engine) -> Failure:
    """Why the engine is not built, and how that is changed."""
    meta = engine.metadata
    lift = f"kubectl -n {meta.namespace} annotate engine {meta.name} {ANNOTATION_LIFT}={quarantine.number} --overwrite"
    advice = f"It failed its verification and is never served. To build it once more, run '{lift}'."
    message = f"{advice} {quarantine.message}"  # in this order: a long message is cut at its end
    return Failure(Reason.ENGINE_QUARANTINED, message, False, quarantine.at)


def quarantined_nodes(engine: Engine) -> tuple[str, ...]:
    """The nodes on which the engine failed its verification, sorted."""
    named = engine.metadata.annotations.get(ANNOTATION_NODES, "").split(",")
    return tuple(sorted({name.strip() for name in named if name.strip()}))


def find_failed_nodes(engine: Engine, pods: Iterable[PodFacts]) -> dict[str, str]:
    """Nodes that are to be quarantined now, with what their pods say: those known already are left out."""
    known = quarantined_nodes(engine)
    found: dict[str, str] = {}
    for pod in pods:
        failure = None if pod.report is None else pod.report.failure
        if pod.engine != engine.metadata.name or not pod.node or pod.node in known or failure is None:
            continue
        if failure.reason == Reason.VERIFICATION_FAILED and not failure.retryable:
            found[pod.node] = failure.message
    return dict(sorted(found.items())[: max(0, MOST_NODES - len(known))])


def avoided_nodes(engine: Engine, pods: Iterable[PodFacts]) -> tuple[str, ...]:
    """Nodes on which no more pods with this engine are placed."""
    return tuple(sorted({*quarantined_nodes(engine), *find_failed_nodes(engine, pods)}))


def write_quarantined_nodes(engines: Iterable[Engine], pods: tuple[PodFacts, ...]) -> tuple[Patch, ...]:
    """Notes newly failed nodes at their Engines. To be written before the pods that tell of it are deleted."""
    writes = []
    for engine in engines:
        found = find_failed_nodes(engine, pods)
        if found:
            nodes = ", ".join(found)
            message = (
                f"Node {nodes} is quarantined for engine {engine.metadata.name[:12]}, replicas are made elsewhere: "
                f"{next(iter(found.values()))} {describe_release(engine)}"
            )
            annotation = ",".join(avoided_nodes(engine, pods))
            body: Mapping[str, Any] = {"metadata": {"annotations": {ANNOTATION_NODES: annotation}}}
            name, namespace = engine.metadata.name, engine.metadata.namespace
            writes.append(Patch("Engine", namespace, name, body, Reason.VERIFICATION_FAILED, message))
    return tuple(writes)


def describe_nodes(engine_name: str, nodes: tuple[str, ...]) -> str:
    """The sentence of a condition; '' where no node is quarantined."""
    if not nodes:
        return ""
    return (
        f"Quarantined for engine {engine_name[:12]}: {', '.join(nodes)}. What is loaded there does not answer as its "
        f"checkpoint does; replicas are made elsewhere. A mended node is taken out of the Engine's annotation "
        f"{ANNOTATION_NODES}."
    )


def describe_release(engine: Engine) -> str:
    """How a node is used again."""
    return f"Once it is mended, take it out of the annotation {ANNOTATION_NODES} of Engine {engine.metadata.name}."
