"""The tokenizers that one engine is served with: which stand in the store, and which Job makes one that lacks. Pure.

The tokenizer is no part of the engine's key. The one that the engine was built with stands among its files; each
further one is a bundle beside them (docs/adr/0028).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hotstart.operator.api import Engine, Reason
from hotstart.operator.core.backoff import JOB_RETRYABLE
from hotstart.operator.core.facts import JobFacts
from hotstart.operator.core.jobs import Failed, Failure, Running, decide_outcome, newest_job
from hotstart.operator.core.revision import OWN_TOKENIZER, Bundle


@dataclass(frozen=True)
class BundlePlan:
    """What is known of a bundle that does not stand, and the attempt to begin; ``check_in`` is in seconds."""

    failure: Failure
    start: int | None = None
    check_in: float | None = None


def list_bundles(engine: Engine) -> tuple[Bundle, ...]:
    """The tokenizers that a stored engine can be served with, its own first."""
    further = (Bundle(bundle.tokenizer_digest, bundle.manifest_digest) for bundle in engine.status.bundles)
    return (OWN_TOKENIZER, *further)


def find_bundle(engine: Engine, tokenizer_digest: str) -> Bundle | None:
    """What brings this tokenizer to a stored engine; None where it has to be made. An unknown one ('') is its own."""
    if tokenizer_digest in ("", engine.status.tokenizer_digest or engine.spec.tokenizer_digest):
        return OWN_TOKENIZER
    return next((bundle for bundle in list_bundles(engine) if bundle.tokenizer_digest == tokenizer_digest), None)


def decide_bundle(jobs: Iterable[JobFacts], tokenizer_digest: str, *, secret: str, now: float) -> BundlePlan:
    """The Job that is due for a bundle that does not stand; a failure that can pass is followed by another attempt."""
    making = Failure(
        Reason.ENGINE_BUILDING, "The engine stands in the store; the files of its new tokenizer are being made.", True
    )
    last = newest_job(job for job in jobs if job.bundle == tokenizer_digest and not job.deleting)
    if last is None:
        return BundlePlan(making, start=0)
    what = "the Job for the engine's new tokenizer"
    outcome = decide_outcome(last, secret=secret, fallback=Reason.BUILD_FAILED, what=what, now=now)
    if isinstance(outcome, Running):
        return BundlePlan(outcome.trouble or making, check_in=3.0)
    failure = outcome.failure if isinstance(outcome, Failed) else making
    if not failure.retryable and failure.reason != Reason.CHECKPOINT_CHANGED:
        return BundlePlan(failure)
    due = (last.finished or failure.at or last.created) + JOB_RETRYABLE.delay(last.attempt + 1)
    return BundlePlan(failure, start=last.attempt + 1) if now >= due else BundlePlan(failure, check_in=due - now)
