"""The ``build`` Job: checkpoint -> engine (or a tokenizer's bundle) -> store, with the exchange beside the work.

Downloading, converting and verifying block and run in one thread; the exchange and the upload run in the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hotstart.engines.build_estimate import say_build_estimate
from hotstart.engines.builder.bundle import make_bundle
from hotstart.engines.builder.calibration import Calibrated, calibrate_engine
from hotstart.engines.builder.conversion import (
    EXPECTATIONS,
    Conversion,
    convert,
    estimate_build,
    find_conversion,
    finish,
)
from hotstart.engines.builder.kept import kept_expectation, kept_timing_cache
from hotstart.engines.builder.log_tail import LogTail
from hotstart.engines.builder.prepare import Prepared
from hotstart.engines.builder.refit_base import fetch_refit_base
from hotstart.engines.builder.room import full_disk_errors
from hotstart.engines.builder.serving import OnListening, run_until_cancelled, served
from hotstart.engines.builder.settings import BuildSettings
from hotstart.engines.builder.state import BuildState
from hotstart.engines.builder.termination import make_failure
from hotstart.engines.checkpoints.checkpoint import count_parameters
from hotstart.engines.errors import EngineError, Reason
from hotstart.engines.kept import has_timing_cache
from hotstart.engines.key import key_inputs
from hotstart.engines.manifest import Manifest, ManifestFile
from hotstart.engines.recipe import REFIT
from hotstart.engines.runtimes.runtime import Runtime, check_toolchain, load_runtime
from hotstart.engines.transfers.upload import upload_engine
from hotstart.engines.verification import Verification
from hotstart.engines.verify.verify import Subject, verify_engine
from hotstart.exchange.messages import BuildPhase, BuiltFile, PodFailure

log = logging.getLogger(__name__)
TELL_SECONDS = 10.0  # a failure waits so long for the operator to hear of it
TOOLS = "tools"  # folder of a build's tools, beside what they are given


async def build(settings: BuildSettings, tail: LogTail, on_listening: OnListening | None = None) -> PodFailure | None:
    """Builds and uploads; returns None once the engine is published, else what failed."""
    state = BuildState(settings.pod_uid, settings.engine_key, tail)
    async with served(settings, state, on_listening):
        error = await run_until_cancelled(_work(settings, state), state)
        if error is None:
            return None
        return make_failure(error, Reason.BUILD_FAILED) if state.cancelled.is_set() else await _tell(state, error)


async def _work(settings: BuildSettings, state: BuildState) -> None:
    with tempfile.TemporaryDirectory(dir=settings.scratch, prefix="build-") as parent:
        work, engine = Path(parent) / "work", Path(parent) / "engine"
        work.mkdir()
        engine.mkdir()
        make = make_only_bundle if settings.bundle else make_engine
        made = await asyncio.to_thread(make, settings, state, work, engine)
        files = await upload_engine(state, engine)
        state.manifest = make_manifest(settings, made, files, time.monotonic() - state.began).to_json()
        state.enter(BuildPhase.UPLOADED)
        log.info("engine uploaded key=%s bytes=%d", settings.engine_key, sum(file.size for file in files))
        await state.published.wait()
    log.info("engine published key=%s", settings.engine_key)


@dataclass(frozen=True)
class MadeEngine:
    """What was built: of which checkpoint, how far it agrees with it, and how fast it is.

    A bundle, which is no engine, has neither verification nor profile.
    """

    prepared: Prepared
    verification: Verification | None = None
    calibrated: Calibrated = field(default_factory=lambda: Calibrated(None, None))


def make_only_bundle(settings: BuildSettings, state: BuildState, work: Path, bundle: Path) -> MadeEngine:
    """``make_engine`` for an engine that stands in the store and lacks its tokenizer's files."""
    return MadeEngine(make_bundle(settings, state, work, bundle))


def make_engine(settings: BuildSettings, state: BuildState, work: Path, engine: Path) -> MadeEngine:
    """The blocking part: fills ``engine`` with the engine's files; ``work`` is an empty folder on the same disk.

    Raises:
        EngineError: the checkpoint, the recipe, the machine or the disk.
    """
    runtime = load_runtime(settings.recipe.toolchain.runtime)
    check_toolchain(runtime, settings.recipe)
    runtime.check_platform(settings.recipe)
    conversion = find_or_convert(settings, state, runtime, work)
    prepared = conversion.prepared
    compile_engine(settings, state, runtime, conversion, work / TOOLS, engine)
    state.enter(BuildPhase.VERIFYING)
    digests = (prepared.checkpoint_digest, prepared.tokenizer_digest)
    subject = Subject(prepared.checkpoint, *digests, settings.recipe, engine, prepared.check_unchanged)
    with kept_expectation(state, prepared, settings.scratch / EXPECTATIONS):
        verification = verify_engine(runtime, subject, settings.scratch / EXPECTATIONS, state.set_share)
    state.enter(BuildPhase.CALIBRATING)
    calibrated = calibrate_engine(
        engine,
        settings.recipe,
        settings.serving,
        beside=settings.calibrator,
        on_share=lambda share: setattr(state, "share", share),
    )
    return MadeEngine(prepared, verification, calibrated)


def compile_engine(
    settings: BuildSettings, state: BuildState, runtime: Runtime, conversion: Conversion, tools: Path, engine: Path
) -> None:
    """The runtime's own step, with the estimate before it and the store's timing cache around it.

    Raises:
        EngineError: the tool, the machine or the disk.
    """
    recipe = settings.recipe
    tools.mkdir()
    if runtime.compiles:
        estimate = estimate_build(state, conversion.prepared, recipe)
        state.enter(BuildPhase.BUILDING)
        log.info("build estimated needs=%s", say_build_estimate(estimate))
    with kept_timing_cache(state, recipe, tools) if has_timing_cache(recipe.toolchain) else nullcontext():
        if recipe.rebuild == REFIT:
            fetch_refit_base(state, tools, network_facts(conversion.prepared))
        with full_disk_errors(engine, 0):
            runtime.build(conversion.files, recipe, engine, state.set_share, tools)


def find_or_convert(settings: BuildSettings, state: BuildState, runtime: Runtime, work: Path) -> Conversion:
    """The conversion that a container before this one has left, whole or only begun, or one of our own in ``work``."""
    found = None if settings.converted is None else find_conversion(settings, settings.converted)
    if found is None:
        return convert(settings, state, runtime, work)
    state.checkpoint_bytes = found.prepared.choice.size
    state.began -= found.seconds  # the build began with the container before this one
    return found if found.converted else finish(settings, state, runtime, found)


def network_facts(prepared: Prepared) -> dict[str, Any]:
    """The network's sizes as the manifest has them."""
    facts = prepared.checkpoint.facts
    return facts.to_json() | {"parameters": count_parameters(facts)}


def make_manifest(settings: BuildSettings, made: MadeEngine, files: tuple[BuiltFile, ...], seconds: float) -> Manifest:
    """The manifest of the uploaded engine. Pure."""
    prepared = made.prepared
    return Manifest(
        key=settings.engine_key,
        inputs=key_inputs(settings.checkpoint_digest, settings.recipe),
        files=tuple(ManifestFile(file.path, file.size, file.sha256) for file in files),
        tokenizer_digest=prepared.tokenizer_digest,
        facts=network_facts(prepared),
        build_seconds=round(seconds, 1),
        verification=made.verification,
        profile=made.calibrated.profile,
        calibration_failure=made.calibrated.failure,
    )


async def _tell(state: BuildState, error: BaseException) -> PodFailure:
    """Reports the failure once, or gives up after ``TELL_SECONDS``."""
    failure = make_failure(error, Reason.BUILD_FAILED)
    unforeseen = None if isinstance(error, EngineError) else error  # only such a one is worth a stack trace
    log.error("build failed reason=%s message=%s", failure.reason, failure.message, exc_info=unforeseen)
    state.failure = failure
    state.enter(BuildPhase.FAILED)
    try:
        await asyncio.wait_for(state.failure_told.wait(), TELL_SECONDS)
    except TimeoutError:
        log.warning("operator did not ask seconds=%s", TELL_SECONDS)
    return failure
