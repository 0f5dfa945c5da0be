"""`plan`: what applying a model would cost, before anything is built. What is not known is said, with why."""

from __future__ import annotations

import json
import shlex
from argparse import Namespace
from pathlib import Path
from typing import Any

from hotstart.cli.checkpoints import inspected, read_config
from hotstart.cli.commands import cache_dir, new_state
from hotstart.cli.inputs import make_access, read_model
from hotstart.cli.output import Output
from hotstart.engines.architectures import OURS, ConvertOptions, find_architecture, make_convert_argv
from hotstart.engines.build_estimate import make_build_estimate, say_build_estimate
from hotstart.engines.errors import EngineError, Reason, Terminal
from hotstart.engines.key import diff_inputs, key_inputs
from hotstart.engines.manifest import MANIFEST_NAME
from hotstart.engines.recipe import EngineRecipe
from hotstart.engines.runtimes.tensorrt_llm.build_command import BuildPlaces, make_build_command
from hotstart.operator.api import CompletionModelSpec
from hotstart.operator.api.status import CheckpointStatus
from hotstart.operator.core.jobs import Failure
from hotstart.operator.core.recipe import WantedEngine, decide_wanted_engine, make_sizes

NOT_READ = "the checkpoint was not read whole, and the key needs its digests: add --inspect"


def run_plan(options: Namespace, output: Output) -> EngineError | None:
    """Key, steps, command lines, memory plan, what would be reused, what is unknown and why.

    What is refused, or wrong with the checkpoint, is shown and returned.
    """
    spec = read_model(options.file).spec
    unknown: list[str] = []
    try:
        checkpoint = read_checkpoint(options, spec, output, unknown)
    except EngineError as error:
        unknown.append(f"checkpoint: {error.reason.value}: {error.message}")
        output.show({"failure": {"reason": error.reason.value, "message": error.message}, "unknown": unknown})
        return error
    if checkpoint is None:
        output.show({"unknown": unknown})
        return None
    wanted = decide_wanted_engine(spec, checkpoint)
    refusal = wanted if isinstance(wanted, Failure) else wanted.refusal
    if isinstance(wanted, Failure):
        output.show({"refused": f"{wanted.reason}: {wanted.message}", "unknown": unknown})
    else:
        output.show(describe(wanted, checkpoint, options.engines or cache_dir(), unknown))
    return None if refusal is None else Terminal(Reason.UNSUPPORTED_RECIPE, refusal.message)


def read_checkpoint(
    options: Namespace, spec: CompletionModelSpec, output: Output, unknown: list[str]
) -> CheckpointStatus | None:
    """What can be known of the checkpoint; what cannot goes into ``unknown``. None: only a cluster sees it.

    Raises:
        EngineError: whatever is wrong with store or checkpoint.
    """
    named = options.checkpoint or spec.checkpoint.uri
    if named.startswith("pvc://"):
        unknown.append(f"checkpoint: {named} is a volume of the cluster; name a copy with --checkpoint")
        return None
    endpoint = "" if options.checkpoint else spec.checkpoint.endpoint or ""
    access = make_access(named, endpoint=endpoint)
    if not options.inspect:
        unknown.append(f"key: {NOT_READ}")
        return read_config(access, spec)
    state = new_state("")
    with output.progress(state), inspected(access, spec, state, heads_only=True) as found:
        return found.status


def describe(wanted: WantedEngine, checkpoint: CheckpointStatus, engines: Path, unknown: list[str]) -> dict[str, Any]:
    """The plan, in the order in which it would happen. Lists are steps."""
    recipe, known = wanted.recipe, bool(checkpoint.digest)
    result: dict[str, Any] = {"architecture": checkpoint.architecture, "parameters": checkpoint.parameters}
    if known:
        result["key"] = wanted.key
        result["reuse"] = describe_reuse(wanted, checkpoint, engines)
    if wanted.refusal is not None:
        return {**result, "refused": f"{wanted.refusal.reason}: {wanted.refusal.message}", "unknown": unknown}
    result["steps"] = describe_steps(recipe, checkpoint)
    if wanted.memory is not None:
        result["memory"] = wanted.memory.sentence
    sizes = make_sizes(checkpoint)
    if sizes is not None and recipe.toolchain.runtime == "tensorrt_llm":
        result["build"] = say_build_estimate(make_build_estimate(sizes, recipe))
    elif recipe.toolchain.runtime == "tensorrt_llm":
        unknown.append("memory: the config of this family does not tell the sizes that the memory plan needs")
    result["unknown"] = [*unknown, "cluster: free GPUs and standing pods are in `status.plan` of the applied model"]
    return result


def describe_steps(recipe: EngineRecipe, checkpoint: CheckpointStatus) -> list[str]:
    """What the Jobs run, command lines in full."""
    steps = ["inspect: read the checkpoint once, pin its digests"]
    toolchain = recipe.toolchain
    if toolchain.runtime != "tensorrt_llm":
        steps.append(f"convert: {toolchain.converter} {toolchain.converter_version}, {recipe.quantization}")
    else:
        steps.append(f"convert (no GPU): {describe_conversion(recipe, checkpoint)}")
        places = BuildPlaces("converted/checkpoint", "engine", "timing.cache")
        steps.append(f"build (GPU): {shlex.join(make_build_command(recipe, places).argv)}")
    return [*steps, "verify: against the checkpoint, token by token", "calibrate: a bounded sweep", "upload"]


def describe_conversion(recipe: EngineRecipe, checkpoint: CheckpointStatus) -> str:
    """Our converter by name, or the upstream one's command line."""
    converter, architecture = recipe.toolchain.converter, find_architecture(checkpoint.architecture)
    if converter in OURS or architecture is None or converter != architecture.converters.get("tensorrt_llm"):
        return f"{converter} {recipe.toolchain.converter_version}, {recipe.quantization}"
    options = ConvertOptions(
        "checkpoint", "converted/checkpoint", recipe.dtype, recipe.tensor_parallel, recipe.quantization
    )
    return shlex.join(make_convert_argv(architecture, options))


def describe_reuse(wanted: WantedEngine, checkpoint: CheckpointStatus, engines: Path) -> str:
    """Whether the engine stands in a folder of engines, or how it differs from the nearest one there."""
    inputs, nearest, where = key_inputs(checkpoint.digest, wanted.recipe), None, ""
    for path in sorted(engines.glob(f"*/{MANIFEST_NAME}")):
        try:
            other = json.loads(path.read_text())
            if other["key"] == wanted.key and other["tokenizer_digest"] == checkpoint.tokenizer_digest:
                return f"{path.parent} is this engine: nothing is built"
            if other["key"] == wanted.key:
                return (
                    f"{path.parent} is this engine with another tokenizer: a cluster makes the tokenizer's files alone"
                )
            difference = diff_inputs(inputs, other["inputs"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not an engine's folder
        if nearest is None or len(difference) < len(nearest):
            nearest, where = difference, path.parent.name
    if nearest is None:
        return f"no engine in {engines}: it is built"
    return f"built; nearest in {engines} is {where}: {'; '.join(nearest[:3])}"
