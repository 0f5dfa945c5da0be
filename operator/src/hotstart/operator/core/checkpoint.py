"""The checkpoint of a model: is it pinned, and if not, which inspect Job is due? Pure.

Part of the flow "checkpoint to engine to pod": what the inspect Job found becomes `status.checkpoint`, and from its
digest comes the engine's key. What was pinned before stays in status until something new is pinned.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hotstart.operator.api import CompletionModel, Reason
from hotstart.operator.api.status import CheckpointStatus, NetworkStatus
from hotstart.operator.core.backoff import INSPECT_TERMINAL, JOB_RETRYABLE
from hotstart.operator.core.facts import JobFacts
from hotstart.operator.core.jobs import Failed, Failure, Running, Succeeded, decide_outcome, newest_job
from hotstart.operator.core.recipe import make_inspect_hash

KEPT_JOBS = 2  # finished attempts that stay for whoever wants to look at them


@dataclass(frozen=True)
class Inspection:
    """The decision. ``checkpoint`` is set where it is pinned for the spec that stands.

    ``start`` is the attempt to begin; ``failure`` is what is wrong meanwhile; ``check_in`` is in seconds.
    """

    checkpoint: CheckpointStatus | None = None
    start: int | None = None
    failure: Failure | None = None
    check_in: float | None = None
    obsolete: tuple[JobFacts, ...] = ()


def decide_inspection(model: CompletionModel, jobs: Iterable[JobFacts], *, not_before: float, now: float) -> Inspection:
    """What to do about the checkpoint. Inspections that ended before ``not_before`` no longer count.

    ``not_before`` is when a builder found that the checkpoint had changed, else 0.
    """
    spec_hash = make_inspect_hash(model.spec)
    pinned = model.status.checkpoint
    jobs = [job for job in jobs if not job.deleting]
    mine = [job for job in jobs if job.spec_hash == spec_hash]
    obsolete = find_obsolete(jobs, spec_hash)
    if pinned is not None and pinned.spec_hash == spec_hash and not_before == 0.0:
        return Inspection(checkpoint=pinned, obsolete=obsolete)
    last = newest_job(mine)
    if last is None:
        return Inspection(start=0, obsolete=obsolete)
    secret = model.spec.checkpoint.secret_name or ""
    outcome = decide_outcome(
        last, secret=secret, fallback=Reason.INSPECTION_FAILED, what="the inspection of the checkpoint", now=now
    )
    if isinstance(outcome, Running):
        return Inspection(failure=outcome.trouble, check_in=3.0, obsolete=obsolete)
    if isinstance(outcome, Succeeded) and outcome.at >= not_before:
        found = read_result(outcome.result, model, spec_hash)
        if isinstance(found, CheckpointStatus):
            return Inspection(checkpoint=found, obsolete=obsolete)
        outcome = Failed(found)
    if isinstance(outcome, Succeeded):
        return Inspection(start=last.attempt + 1, obsolete=obsolete)
    return decide_retry(last, outcome.failure, mine, obsolete, now)


def decide_retry(
    last: JobFacts, failure: Failure, mine: list[JobFacts], obsolete: tuple[JobFacts, ...], now: float
) -> Inspection:
    """Another attempt, or how long until it: often where it may pass by itself, rarely where not."""
    backoff = JOB_RETRYABLE if failure.retryable else INSPECT_TERMINAL
    due = (last.finished or failure.at or last.created) + backoff.delay(last.attempt + 1)
    if now >= due:
        return Inspection(start=last.attempt + 1, failure=failure, obsolete=obsolete)
    return Inspection(failure=failure, check_in=due - now, obsolete=obsolete)


def find_obsolete(jobs: list[JobFacts], spec_hash: str) -> tuple[JobFacts, ...]:
    """Jobs of another spec, and all but the last attempts at this one."""
    other = [job for job in jobs if job.spec_hash != spec_hash]
    mine = sorted((job for job in jobs if job.spec_hash == spec_hash), key=lambda job: job.attempt)
    return (*other, *mine[: -1 - KEPT_JOBS])


def read_result(result: dict[str, Any], model: CompletionModel, spec_hash: str) -> CheckpointStatus | Failure:
    """What the inspect Job found, as status.checkpoint; a failure where its report lacks something."""
    try:
        return CheckpointStatus(
            uri=model.spec.checkpoint.uri,
            revision=model.spec.checkpoint.revision or "",
            digest=str(result["digest"]),
            tokenizer_digest=str(result["tokenizerDigest"]),
            spec_hash=spec_hash,
            architecture=str(result.get("architecture", ""))[:64],
            format=str(result.get("format", ""))[:64],
            parameters=result.get("parameters"),
            size_bytes=result.get("sizeBytes"),
            files=result.get("files"),
            network=read_network(result),
        )
    except (KeyError, ValueError) as error:
        message = f"The inspection's report is incomplete ({error}): builder and operator are of different releases."
        return Failure(Reason.INSPECTION_FAILED, message, True)


def read_network(result: dict[str, Any]) -> NetworkStatus | None:
    """The network's sizes; None where the report has none: one of a family that only TensorRT-LLM's scripts know.

    Raises:
        ValueError: a size is no number.
    """
    facts = result.get("facts") or {}
    if "kvHeads" not in facts:
        return None
    names = ("layers", "hidden", "intermediate", "heads", "kvHeads", "headDim", "vocab", "contextLength")
    sizes = {name: facts[name] for name in names if name in facts}
    return NetworkStatus.model_validate({**sizes, "embeddingParameters": result.get("embeddingParameters", 0)})
