"""The commands that read a checkpoint or an engine: inspect, key, convert, build, verify, calibrate."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hotstart.cli.checkpoints import Inspected, inspected, serving_of
from hotstart.cli.inputs import make_access, read_recipe
from hotstart.cli.output import Output
from hotstart.engines.builder.build import make_engine, make_manifest
from hotstart.engines.builder.conversion import convert
from hotstart.engines.builder.log_tail import LogTail
from hotstart.engines.builder.settings import BuildSettings
from hotstart.engines.builder.state import BuildState
from hotstart.engines.calibrate.calibrate import calibrate
from hotstart.engines.calibrate.samples import CalibrationFailed, CannotCalibrate
from hotstart.engines.errors import Reason, Retryable, Terminal
from hotstart.engines.key import engine_name, key_inputs
from hotstart.engines.manifest import MANIFEST_NAME, BadManifest, Manifest, parse_manifest
from hotstart.engines.recipe import EngineRecipe
from hotstart.engines.runtimes.runtime import check_toolchain, load_runtime
from hotstart.engines.verify.golden import GOLDEN_NAME
from hotstart.engines.verify.verify import Subject, verify_engine
from hotstart.exchange.messages import BuildPhase, BuiltFile, ServingOptions
from hotstart.operator.api import CompletionModelSpec
from hotstart.operator.core.jobs import Failure
from hotstart.operator.core.recipe import WantedEngine, decide_wanted_engine, make_serving_options

log = logging.getLogger(__name__)


def cache_dir() -> Path:
    """Where expectations and built engines are kept between runs."""
    return Path.home() / ".cache" / "hotstart" / "engines"


def run_inspect(options: Namespace, output: Output) -> None:
    """Reads a whole checkpoint: what it is, its digests, and whether its tensors are those that its config says."""
    spec = read_recipe(options.recipe) if options.recipe else guess_spec(options.runtime)
    state = new_state("")
    with output.progress(state), inspected(make_access(options.checkpoint), spec, state, heads_only=True) as found:
        result = found.result
    output.show(result)


def run_key(options: Namespace, output: Output) -> None:
    """The engine key of a checkpoint and a recipe, with all that it is made of."""
    spec, state = read_recipe(options.recipe), new_state("")
    with output.progress(state), inspected(make_access(options.checkpoint), spec, state, heads_only=True) as found:
        wanted = require_wanted(spec, found)
    output.show({"key": wanted.key, "inputs": key_inputs(found.result["digest"], wanted.recipe)})


def run_convert(options: Namespace, output: Output) -> None:
    """Writes what the runtime builds from: for tensorrt_llm a TensorRT-LLM checkpoint, for ctranslate2 the engine."""
    spec = read_recipe(options.recipe)
    with prepared_build(options, spec, output) as (settings, state), empty_output(options.output) as folder:
        runtime = load_runtime(settings.recipe.toolchain.runtime)
        with output.progress(state), tempfile.TemporaryDirectory(dir=folder.parent, prefix=".hotstart-") as work:
            conversion = convert(settings, state, runtime, Path(work))
            move_files(conversion.files, folder)
    files = sorted(str(path.relative_to(options.output)) for path in options.output.rglob("*") if path.is_file())
    output.show({"key": settings.engine_key, "output": str(options.output), "files": files})


def run_build(options: Namespace, output: Output) -> None:
    """Converts, builds, verifies and calibrates an engine, and writes it with its manifest."""
    spec = read_recipe(options.recipe)
    with prepared_build(options, spec, output) as (settings, state), empty_output(options.output) as folder:
        manifest = take_cached(settings, folder)
        reused, began = manifest is not None, time.monotonic()
        if manifest is None:
            manifest = build_into(folder, settings, state, output, began)
    if not reused:
        try:
            keep_cached(options.output, manifest.key)
        except OSError as error:  # the engine stands; only the next command has to build it again
            output.warn(f"The engine is not kept in {cache_dir()} for the next command: {error}.")
    output.show({"output": str(options.output), "reused": reused, **describe_engine(manifest)})


def build_into(folder: Path, settings: BuildSettings, state: BuildState, output: Output, began: float) -> Manifest:
    """Builds the engine into an empty folder."""
    with output.progress(state), tempfile.TemporaryDirectory(dir=folder.parent, prefix=".hotstart-") as work:
        made = make_engine(settings, state, Path(work), folder)
    files = tuple(describe_file(path) for path in sorted(folder.iterdir()))
    manifest = make_manifest(settings, made, files, time.monotonic() - began)
    (folder / MANIFEST_NAME).write_text(manifest.to_json())
    return manifest


def take_cached(settings: BuildSettings, folder: Path) -> Manifest | None:
    """Fills ``folder`` with the engine from the cache; None where it is not there, or not as its manifest says."""
    cached = cache_dir() / engine_name(settings.engine_key)
    if not (cached / MANIFEST_NAME).is_file():
        return None
    try:
        manifest, _ = read_engine(cached)
    except Terminal as error:
        log.warning("engine in the cache not taken error=%s", error)
        return None
    if (manifest.key, manifest.tokenizer_digest) != (settings.engine_key, settings.tokenizer_digest):
        return None
    copy_engine(cached, folder)
    return manifest


def keep_cached(engine: Path, key: str) -> None:
    """Leaves the engine in the cache, in the place of what stood there: for `plan` and the next `build`."""
    cached = cache_dir() / engine_name(key)
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix=".hotstart-") as parent:
        copy_engine(engine, new := Path(parent) / "engine")
        shutil.rmtree(cached, ignore_errors=True)
        new.rename(cached)


def copy_engine(source: Path, target: Path) -> None:
    """By hard links, which take no room; where that cannot be, by copies."""

    def link_or_copy(one: str, other: str) -> str:
        try:
            os.link(one, other)
            return other
        except OSError:
            return shutil.copy2(one, other)

    shutil.copytree(source, target, copy_function=link_or_copy, dirs_exist_ok=True)


def run_verify(options: Namespace, output: Output) -> None:
    """Holds an engine against its checkpoint, token by token; the engine's folder is not changed."""
    manifest, recipe = read_engine(options.engine)
    spec, state = guess_spec(recipe.toolchain.runtime), new_state(manifest.key)
    runtime = load_runtime(recipe.toolchain.runtime)
    check_toolchain(runtime, recipe)
    with output.progress(state), inspected(make_access(options.checkpoint), spec, state, heads_only=False) as found:
        check_checkpoint(manifest, found)
        state.enter(BuildPhase.VERIFYING)
        with tempfile.TemporaryDirectory(prefix="hotstart-") as links:
            link_engine(options.engine, Path(links))
            prepared = found.prepared
            digests = (prepared.checkpoint_digest, prepared.tokenizer_digest)
            subject = Subject(prepared.checkpoint, *digests, recipe, Path(links), prepared.check_unchanged)
            verification = verify_engine(runtime, subject, cache_dir() / "expectations", state.set_share)
    output.show({"verification": verification.to_json()})


def run_calibrate(options: Namespace, output: Output) -> None:
    """Measures an engine as it would serve on this machine."""
    manifest, recipe = read_engine(options.engine)
    spec = read_recipe(options.recipe) if options.recipe else None
    serving = make_serving(recipe) if spec is None else serving_of(spec)
    state = new_state(manifest.key)
    state.enter(BuildPhase.CALIBRATING)
    try:
        with output.progress(state):
            profile = calibrate(options.engine, recipe, serving, on_share=state.set_share)
    except CalibrationFailed as error:
        kind = Terminal if isinstance(error, CannotCalibrate) else Retryable  # a machine that is busy now
        raise kind(Reason.BUILD_FAILED, f"The engine was not calibrated: {error}.") from error
    output.show({"profile": profile.to_json(), "noisy": profile.noisy})


def new_state(key: str) -> BuildState:
    """The state that progress is read from."""
    return BuildState("", key, LogTail(), heard=False)


def guess_spec(runtime: str) -> CompletionModelSpec:
    """A spec for commands that need none of the recipe: only the runtime matters to what is checked."""
    accelerator = {"accelerator": {"product": "NVIDIA-H100-80GB-HBM3"}} if runtime == "tensorrt_llm" else {}
    limits = {"inputTokens": 1, "sequenceTokens": 2}
    body = {"checkpoint": {"uri": "s3://none/"}, "engine": {"runtime": runtime, "limits": limits, **accelerator}}
    return CompletionModelSpec.model_validate({**body, "serving": {"maxNewTokens": 1}})


def make_serving(recipe: EngineRecipe) -> ServingOptions:
    """Serving as a model with this recipe and no other wishes has it."""
    limits = recipe.limits
    spec = guess_spec(recipe.toolchain.runtime)
    room = max(1, min(32, limits.sequence_tokens - limits.input_tokens))
    return make_serving_options(spec).model_copy(
        update={"max_input_tokens": limits.input_tokens, "max_new_tokens": room}
    )


def require_wanted(spec: CompletionModelSpec, found: Inspected) -> WantedEngine:
    """The engine for a spec and a checkpoint. Raises Terminal with why there is none."""
    wanted = decide_wanted_engine(spec, found.status)
    refusal = wanted if isinstance(wanted, Failure) else wanted.refusal
    if refusal is not None or isinstance(wanted, Failure):
        assert refusal is not None
        raise Terminal(Reason(refusal.reason), refusal.message)
    return wanted


@contextmanager
def prepared_build(
    options: Namespace, spec: CompletionModelSpec, output: Output
) -> Iterator[tuple[BuildSettings, BuildState]]:
    """Settings as a build Job has them, for a checkpoint that was inspected here."""
    access, serving = make_access(options.checkpoint), make_serving_options(spec)
    state = new_state("")
    with output.progress(state), inspected(access, spec, state, heads_only=True) as found:
        wanted = require_wanted(spec, found)
    cache_dir().mkdir(parents=True, exist_ok=True)
    settings = BuildSettings(
        checkpoint=access,
        scratch=cache_dir(),
        serving=serving,
        recipe=wanted.recipe,
        engine_key=wanted.key,
        checkpoint_digest=found.result["digest"],
        tokenizer_digest=found.result["tokenizerDigest"],
        converted=None,
        calibrator=None,
        pod_uid="",
        keys_file=Path(),
        host="",
        port=0,
    )
    yield settings, new_state(wanted.key)


@contextmanager
def empty_output(folder: Path) -> Iterator[Path]:
    """A new folder that becomes ``folder`` once the block is done; nothing of it is left where the block fails.

    An empty ``folder`` stays and takes its files: it may be a mount, or where somebody stands.

    Raises:
        Terminal: InvalidSpec, something stands there.
    """
    if (stands := folder.exists()) and (not folder.is_dir() or any(folder.iterdir())):
        raise Terminal(Reason.INVALID_SPEC, f"--output {folder} is not empty: name a new folder, or empty it.")
    folder = folder.resolve()
    parent = folder if stands else folder.parent
    parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=parent, prefix=f".{folder.name}."))
    try:
        yield unfinished
        if stands:
            for path in sorted(unfinished.iterdir()):
                path.rename(folder / path.name)
        else:
            unfinished.chmod(0o755)
            unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def move_files(source: Path, target: Path) -> None:
    """Everything directly in ``source``; a TensorRT-LLM checkpoint comes up from its own folder."""
    inner = source / "checkpoint"
    for path in sorted((inner if inner.is_dir() else source).iterdir()):
        shutil.move(path, target / path.name)


def describe_file(path: Path) -> BuiltFile:
    """Size and digest of one file of an engine."""
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return BuiltFile(path=path.name, size=path.stat().st_size, sha256=digest)


def describe_engine(manifest: Manifest) -> dict[str, Any]:
    """What is worth saying of an engine."""
    found: dict[str, Any] = {"key": manifest.key, "bytes": manifest.size, "seconds": manifest.build_seconds}
    if manifest.verification is not None:
        found["verification"] = manifest.verification.to_json()
    if manifest.profile is not None:
        found["profile"] = manifest.profile.to_json()
    if manifest.calibration_failure:
        found["calibration"] = manifest.calibration_failure
    return found


def read_engine(folder: Path) -> tuple[Manifest, EngineRecipe]:
    """An engine's folder as `build` writes it, whole and unchanged.

    Raises:
        Terminal: EngineCorrupt.
    """
    try:
        text = (folder / MANIFEST_NAME).read_text()
        manifest = parse_manifest(text, key=str(json.loads(text)["key"]))
        recipe = EngineRecipe.from_dict(manifest.inputs["recipe"] | _limits(manifest))
    except (OSError, ValueError, KeyError, TypeError, BadManifest) as error:
        raise Terminal(Reason.ENGINE_CORRUPT, f"{folder} is no engine of `hotstart-engine build`: {error}.") from error
    for file in manifest.files:
        path = folder / file.path
        if not path.is_file() or describe_file(path).sha256 != file.sha256:
            raise Terminal(Reason.ENGINE_CORRUPT, f"{path} is not what the manifest says: build the engine again.")
    return manifest, recipe


def _limits(manifest: Manifest) -> dict[str, Any]:
    """Keys of ctranslate2 hold no limits; any that fit its network will do."""
    if "limits" in manifest.inputs["recipe"]:
        return {}
    return {"limits": {"batch_size": 8, "input_tokens": 96, "sequence_tokens": 128}}


def check_checkpoint(manifest: Manifest, found: Inspected) -> None:
    """Raises Terminal (CheckpointChanged) where the engine was built of another checkpoint."""
    theirs = str(manifest.inputs["checkpoint"])
    if theirs != found.result["digest"]:
        raise Terminal(
            Reason.CHECKPOINT_CHANGED,
            f"The engine was built of a checkpoint with digest {theirs[:12]}, this one has "
            f"{found.result['digest'][:12]}: name the one that it was built of.",
        )


def link_engine(folder: Path, links: Path) -> None:
    """Links to the engine's files, but for the golden questions, which verification writes."""
    for path in folder.iterdir():
        if path.name not in (GOLDEN_NAME, MANIFEST_NAME):
            (links / path.name).symlink_to(path.resolve())
