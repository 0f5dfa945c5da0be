"""The tensorrt_llm runtime: a checkpoint -> a TensorRT-LLM checkpoint -> engines, by the tools of the container.

Nothing here has run with TensorRT-LLM: command lines, files and messages are held by tests against what is known of
version 1.2.1 (``docs/how-it-is-tested.md``). Layout of a conversion: ``checkpoint/`` (or, for fp8, ``model/``: the
Hugging Face folder that the build calibrates) and ``beside/``, which goes with the engine as it is.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hotstart.engines.accelerators import GIB
from hotstart.engines.architectures import (
    MPT_CONVERTER,
    OURS,
    TENSORRT_LLM,
    ConvertOptions,
    make_convert_argv,
    require_architecture,
)
from hotstart.engines.checkpoints.checkpoint import Checkpoint
from hotstart.engines.checkpoints.trtllm_folder import check_as_it_is
from hotstart.engines.errors import Reason, Retryable, Terminal
from hotstart.engines.kept import NEW_TIMING_CACHE, TIMING_CACHE
from hotstart.engines.recipe import (
    BUILD_OPTIONS,
    BUILD_OPTIONS_VERSION,
    PLAN_PREFIX,
    EngineRecipe,
    Toolchain,
    make_toolchain,
)
from hotstart.engines.runtimes.engine_json import ENGINE_JSON, TOKENIZER_JSON, make_engine_json
from hotstart.engines.runtimes.machine import check_cpu
from hotstart.engines.runtimes.runtime import Progress
from hotstart.engines.runtimes.tensorrt_llm import gpus, versions
from hotstart.engines.runtimes.tensorrt_llm.build_command import (
    CONFIG,
    TOOL_ENVIRONMENT,
    BuildPlaces,
    Command,
    check_recipe,
    checkpoint_files,
    make_build_command,
    make_quantize_command,
)
from hotstart.engines.runtimes.tensorrt_llm.driver import find_compat, make_driver_environment
from hotstart.engines.runtimes.tensorrt_llm.engine_config import find_differences
from hotstart.engines.runtimes.tensorrt_llm.model_folder import lay_out_model, link_files
from hotstart.engines.runtimes.tensorrt_llm.progress import BarProgress, BuildProgress, advance
from hotstart.engines.runtimes.tensorrt_llm.refit import (
    BASE,
    PLAN,
    REFIT_TOOL,
    is_refit,
    make_refit_command,
    make_strip_command,
)
from hotstart.engines.runtimes.tensorrt_llm.tool import run_tool
from hotstart.engines.toolchains import AS_IT_IS, QUANTIZE
from hotstart.engines.verify.scorer import Scorer

log = logging.getLogger(__name__)
CHECKPOINT, MODEL, BESIDE = "checkpoint", "model", "beside"
COMPILE_SHARE = 0.9  # of the build step, where a plan is compiled and then refitted
QUANTIZE_SHARE = 0.4  # of the build step, where the checkpoint is calibrated first


class TensorRTLLM:
    """Implements ``Runtime``."""

    def toolchain(self, converter: str) -> Toolchain:
        libraries = ((BUILD_OPTIONS, str(BUILD_OPTIONS_VERSION)), ("tensorrt", versions.tensorrt_version()))
        ours = make_toolchain(TENSORRT_LLM, converter)
        return replace(ours, runtime_version=versions.runtime_version(), libraries=libraries)

    @property
    def compiles(self) -> bool:
        return True

    def check_platform(self, recipe: EngineRecipe) -> None:
        check_cpu(recipe)
        gpus.check_gpus(recipe)

    def convert(
        self, checkpoint: Checkpoint, recipe: EngineRecipe, folder: Path, progress: Progress, source: Path | None = None
    ) -> None:
        check_recipe(recipe)
        converter = recipe.toolchain.converter
        if converter == MPT_CONVERTER:
            from hotstart.engines.runtimes.tensorrt_llm.mpt_convert import convert_mpt

            convert_mpt(checkpoint, recipe, folder / CHECKPOINT, progress)
        elif source is None:
            raise Terminal(Reason.UNSUPPORTED_RECIPE, f"{converter} reads the checkpoint's own files; there are none.")
        elif converter == AS_IT_IS:
            check_as_it_is(checkpoint, recipe)
            link_files(source, folder / CHECKPOINT, checkpoint_files(recipe.tensor_parallel))
        else:
            lay_out_model(source, folder / MODEL)
            if converter != QUANTIZE:
                run_converter(checkpoint, recipe, folder / MODEL, folder, progress)
                shutil.rmtree(folder / MODEL)
        if converter != QUANTIZE:
            check_files(folder / CHECKPOINT, checkpoint_files(recipe.tensor_parallel), Path(converter).name)
        (folder / BESIDE).mkdir()
        (folder / BESIDE / TOKENIZER_JSON).write_bytes(checkpoint.tokenizer_json)
        (folder / BESIDE / ENGINE_JSON).write_text(make_engine_json(checkpoint, recipe))
        progress(1.0)

    def build(self, converted: Path, recipe: EngineRecipe, engine: Path, progress: Progress, work: Path) -> None:
        checkpoint, before = converted / CHECKPOINT, 0.0
        if recipe.toolchain.converter == QUANTIZE:
            before, checkpoint = QUANTIZE_SHARE, work / CHECKPOINT
            quantize(converted / MODEL, recipe, checkpoint, work, lambda share: progress(before * share))
            progress(before)
        had = (work / TIMING_CACHE).is_file()
        places = BuildPlaces(
            checkpoint=str(checkpoint),
            output=str(engine),
            timing_cache_out=str(work / NEW_TIMING_CACHE),
            timing_cache_in=str(work / TIMING_CACHE) if had else "",
        )
        if is_refit(recipe):
            refit_engine(recipe, places, engine, work, progress)
        else:
            command = make_build_command(recipe, places)
            compile_engine(command, recipe, engine, work, lambda p: progress(before + (1 - before) * p))
        for file in sorted((converted / BESIDE).iterdir()):
            shutil.move(file, engine / file.name)

    def open_scorer(self, folder: Path, recipe: EngineRecipe) -> Scorer:
        from hotstart.engines.runtimes.tensorrt_llm.scorer import TensorRTLLMScorer

        return TensorRTLLMScorer(folder)


def run_converter(checkpoint: Checkpoint, recipe: EngineRecipe, model: Path, folder: Path, progress: Progress) -> None:
    """TensorRT-LLM's own converter for this network, from the Hugging Face folder ``model``.

    Raises:
        EngineError: the recipe's converter is for another network, or the script fails.
        DriverMissing: it cannot even be loaded in a container without a GPU.
    """
    architecture = require_architecture(checkpoint.facts.architecture)
    wanted = architecture.converters.get(TENSORRT_LLM, "none")
    if recipe.toolchain.converter != wanted or wanted in OURS:
        raise Terminal(
            Reason.UNSUPPORTED_RECIPE,
            f"The recipe asks for the converter {recipe.toolchain.converter}, {architecture.name} takes {wanted}: "
            "set checkpoint.revision to have the checkpoint inspected again.",
        )
    options = ConvertOptions(
        model_dir=str(model),
        output_dir=str(folder / CHECKPOINT),
        dtype=recipe.dtype,
        tensor_parallel=recipe.tensor_parallel,
        quantization=recipe.quantization,
    )
    home = folder / "home"
    home.mkdir()
    environment = {**TOOL_ENVIRONMENT, **make_driver_environment(find_compat(), os.environ)}
    run_tool(Command(make_convert_argv(architecture, options), environment), home, BarProgress(progress))
    shutil.rmtree(home)


def quantize(model: Path, recipe: EngineRecipe, checkpoint: Path, work: Path, progress: Progress) -> None:
    """Calibrates the Hugging Face folder ``model`` to fp8, with the texts that engines are verified with.

    Raises:
        EngineError: the script fails, or leaves less than a checkpoint.
    """
    from hotstart.engines.verify.samples import load_samples

    texts = work / "texts"
    texts.mkdir()
    lines = (json.dumps({"text": sample.text}) + "\n" for sample in load_samples())
    (texts / "train.jsonl").write_text("".join(lines))
    command = make_quantize_command(recipe, str(model), str(checkpoint), str(texts))
    run_tool(command, work, BarProgress(progress))
    check_files(checkpoint, checkpoint_files(recipe.tensor_parallel), Path(QUANTIZE).name)


def compile_engine(command: Command, recipe: EngineRecipe, engine: Path, work: Path, progress: Progress) -> None:
    """Runs ``trtllm-build`` and checks what it leaves.

    Raises:
        EngineError: it fails, leaves less than an engine, or builds otherwise than the recipe asks.
    """
    state = BuildProgress(recipe.tensor_parallel)

    def on_line(line: str) -> None:
        nonlocal state
        state = advance(state, line)
        progress(state.share)

    run_tool(command, work, on_line)
    check_files(engine, command.files, "trtllm-build")
    for path in engine.iterdir():
        if path.name not in command.files:
            log.info("file of the build left out name=%s", path.name)
            path.unlink()
    check_config(engine / CONFIG, recipe)
    log.info("engine compiled host_peak_gib=%.1f gpu_peak_gib=%.1f", state.host_peak / GIB, state.gpu_peak / GIB)
    progress(1.0)


def refit_engine(recipe: EngineRecipe, places: BuildPlaces, engine: Path, work: Path, progress: Progress) -> None:
    """The weights into the stripped plan of another engine, or into one that is compiled here; the plan stays with it.

    Raises:
        EngineError: a tool fails, or leaves less than an engine.
    """
    plan = work / BASE
    if not plan.is_dir():
        plan = work / PLAN
        plan.mkdir()
        command = make_strip_command(recipe, replace(places, output=str(plan)))
        compile_engine(command, recipe, plan, work, lambda share: progress(COMPILE_SHARE * share))
    log.info("engine refitted plan=%s", plan.name)
    command = make_refit_command(recipe, str(plan), places.checkpoint, str(engine))
    run_tool(command, work, lambda line: None)
    if not (engine / CONFIG).exists():
        shutil.copyfile(plan / CONFIG, engine / CONFIG)
    check_files(engine, command.files, REFIT_TOOL)
    check_config(engine / CONFIG, recipe)
    for name in command.files:
        shutil.copyfile(plan / name, engine / f"{PLAN_PREFIX}{name}")
    progress(1.0)


def check_files(folder: Path, names: Sequence[str], tool: str) -> None:
    """Raises Retryable (BuildFailed) where a tool that ended well has not left all its files."""
    lacking = [name for name in names if not (folder / name).is_file() or (folder / name).stat().st_size == 0]
    if lacking:
        raise Retryable(
            Reason.BUILD_FAILED, f"{tool} ended without an error and without {', '.join(lacking)}: see the Job's log."
        )


def check_config(path: Path, recipe: EngineRecipe) -> None:
    """Raises Terminal (BuildFailed) where the engine is not what was asked for."""
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise Terminal(
            Reason.BUILD_FAILED, f"The engine's {CONFIG} is no JSON ({error}): see the Job's log."
        ) from error
    if differences := find_differences(config, recipe):
        raise Terminal(
            Reason.BUILD_FAILED,
            f"trtllm-build has built another engine than the recipe asks for ({'; '.join(differences)}): it is not "
            "served. The Job's log says what the tool has changed.",
        )
