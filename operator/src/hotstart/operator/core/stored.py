"""An engine that stands in the store: what its status says, and which tokenizers it still lacks. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from hotstart.engines.manifest import manifest_sha256
from hotstart.operator.api import ConditionType, EngineStatus, Reason
from hotstart.operator.api.engine import BundleStatus, EnginePhase
from hotstart.operator.core.bundles import decide_bundle
from hotstart.operator.core.capacity import make_profile_status
from hotstart.operator.core.conditions import Verdict, make_conditions
from hotstart.operator.core.engine_status import judge_nodes, make_verification_status
from hotstart.operator.core.engine_view import EnginePlan, EngineView, StoredEngine
from hotstart.operator.core.jobs import find_obsolete

MOST_BUNDLES = 16


def decide_stored(view: EngineView, stored: StoredEngine, now: float) -> EnginePlan:
    """Ready; `attempts` 0 says that it was found and not built here."""
    old, manifest = view.engine.status, stored.manifest
    attempts = max((old.attempts, *(job.attempt + 1 for job in view.jobs)))
    message = f"The engine stands whole in the store: {len(manifest.files)} files, {manifest.size} bytes."
    if manifest.calibration_failure:
        message += f" It has no profile: {manifest.calibration_failure}."[:400]
    verdicts = (
        Verdict(ConditionType.READY, True, Reason.ENGINE_STORED, message),
        Verdict(ConditionType.PROGRESSING, False, Reason.UP_TO_DATE, ""),
        judge_nodes(view.engine),
    )
    built_at = old.built_at or (datetime.fromtimestamp(int(now), UTC) if attempts else None)
    status = EngineStatus(
        observed_generation=view.engine.metadata.generation,
        conditions=make_conditions(verdicts, old.conditions, generation=view.engine.metadata.generation, now=now),
        phase=EnginePhase.STORED,
        percent=100,
        size_bytes=manifest.size,
        location=stored.location,
        manifest_digest=manifest_sha256(stored.text),
        tokenizer_digest=manifest.tokenizer_digest,
        bundles=tuple(
            BundleStatus(tokenizer_digest=bundle.tokenizer_digest, manifest_digest=bundle.manifest_sha256)
            for bundle in stored.bundles[:MOST_BUNDLES]
        ),
        attempts=attempts,
        unused_since=old.unused_since,
        built_at=built_at,
        build_seconds=round(manifest.build_seconds),
        verification=None if manifest.verification is None else make_verification_status(manifest.verification),
        profile=None if manifest.profile is None else make_profile_status(manifest.profile),
    )
    plan = decide_bundles(view, stored, now)
    failed = tuple(job for job in view.jobs if job.failed)
    return replace(plan, status=status, obsolete=(*failed, *plan.obsolete))


def decide_bundles(view: EngineView, stored: StoredEngine, now: float) -> EnginePlan:
    """The Jobs that are due for tokenizers that models want and that do not stand beside the engine.

    Of Jobs for one that lacks the last two attempts stay, of others none that failed.
    """
    standing = {"", stored.manifest.tokenizer_digest, *(bundle.tokenizer_digest for bundle in stored.bundles)}
    plans = {
        digest: decide_bundle(view.bundle_jobs, digest, secret=view.secret, now=now)
        for digest in view.tokenizers
        if digest not in standing
    }
    checks = [plan.check_in for plan in plans.values() if plan.check_in is not None]
    starts = {digest: plan.start for digest, plan in plans.items() if plan.start is not None}
    obsolete = [job for job in view.bundle_jobs if job.failed and job.bundle not in plans]
    for digest in starts:
        obsolete.extend(find_obsolete(job for job in view.bundle_jobs if job.bundle == digest))
    return EnginePlan(view.engine.status, check_in=min(checks, default=None), bundles=starts, obsolete=tuple(obsolete))
