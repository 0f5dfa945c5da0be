"""New weights into an engine of the same network without compiling it again: the command lines of ``trtllm-refit``.

Pure. ``--strip_plan`` builds an engine without its weights: small, and kept beside the engine that is made from it, as
files ``refit-*``. ``trtllm-refit`` puts the weights of a checkpoint into it. The first engine of a recipe is compiled,
stripped and refitted with its own weights; the next one takes the stripped plan of the nearest engine.

TensorRT-LLM documents ``--strip_plan`` for the same weights as those of the build, and TensorRT warns of wrong output
otherwise (constants may be folded). So it is off by default, and an engine is served only if its verification holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hotstart.engines.recipe import PLAN_PREFIX, REFIT, EngineRecipe
from hotstart.engines.runtimes.tensorrt_llm.build_command import (
    TOOL_ENVIRONMENT,
    BuildPlaces,
    Command,
    engine_files,
    make_build_command,
)

REFIT_TOOL = "trtllm-refit"
PLAN = "plan"  # in a build's work folder: the plan that is compiled there
BASE = "base"  # in a build's work folder: the stripped plan of another engine, where there is one


def is_refit(recipe: EngineRecipe) -> bool:
    """Whether the recipe asks for it."""
    return recipe.rebuild == REFIT


def make_strip_command(recipe: EngineRecipe, places: BuildPlaces) -> Command:
    """The build of a plan without weights: the build of the engine, and ``--strip_plan``.

    Raises:
        Terminal: UnsupportedRecipe.
    """
    command = make_build_command(recipe, places)
    return Command((*command.argv, "--strip_plan"), command.environment, command.files)


def make_refit_command(recipe: EngineRecipe, plan: str, checkpoint: str, output: str) -> Command:
    """The command that puts the weights of the TensorRT-LLM checkpoint into the stripped plan."""
    argv = (REFIT_TOOL, "--engine_dir", plan, "--checkpoint_dir", checkpoint, "--output_dir", output)
    return Command(argv, TOOL_ENVIRONMENT, engine_files(recipe.tensor_parallel))


def plan_name(path: str) -> str:
    """The name in a plan of an engine's file; '' where the file is not of its plan."""
    return path.removeprefix(PLAN_PREFIX) if path.startswith(PLAN_PREFIX) else ""


def fits(own: Mapping[str, Any], base: Mapping[str, Any]) -> bool:
    """Whether the network of ``base`` is that of ``own``, by the facts in their manifests: every size is the same."""
    return dict(own) == dict(base)
