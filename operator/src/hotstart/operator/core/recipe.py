"""From a model's spec to the engine that it needs: recipe, key, serving options, inspection hash. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hotstart.engines.key import engine_name, key_inputs, make_key
from hotstart.engines.recipe import CTRANSLATE2_TOOLCHAIN, EngineLimits, EngineRecipe, Platform, Toolchain
from hotstart.exchange.messages import PromptFormat, ServingOptions, StopMode
from hotstart.operator.api import CompletionModelSpec
from hotstart.operator.api.model_spec import Runtime
from hotstart.operator.core.names import digest_of

#: Runtimes that this release can build and serve, with their toolchains.
TOOLCHAINS: dict[Runtime, Toolchain] = {Runtime.CTRANSLATE2: CTRANSLATE2_TOOLCHAIN}


@dataclass(frozen=True)
class WantedEngine:
    """The engine that a model needs."""

    key: str
    recipe: EngineRecipe

    @property
    def name(self) -> str:
        """Name of its Engine object."""
        return engine_name(self.key)


def make_recipe(spec: CompletionModelSpec) -> EngineRecipe | None:
    """The recipe; None where this release has no toolchain for the runtime."""
    engine = spec.engine
    toolchain = TOOLCHAINS.get(engine.runtime)
    if toolchain is None:
        return None
    gpu = engine.accelerator
    return EngineRecipe(
        toolchain=toolchain,
        dtype=str(engine.recipe_dtype),
        quantization=str(engine.recipe_quantization),
        tensor_parallel=engine.tensor_parallel,
        limits=EngineLimits(engine.limits.batch_size, engine.limits.input_tokens, engine.limits.sequence_tokens),
        platform=Platform(
            gpu_product="" if gpu is None else gpu.product,
            gpu_memory="" if gpu is None else gpu.mig_profile or "",
        ),
    )


def make_wanted_engine(spec: CompletionModelSpec, checkpoint_digest: str) -> WantedEngine | None:
    """The engine for this spec and checkpoint; None where the runtime is not available."""
    recipe = make_recipe(spec)
    if recipe is None:
        return None
    return WantedEngine(make_key(key_inputs(checkpoint_digest, recipe)), recipe)


def make_serving_options(spec: CompletionModelSpec) -> ServingOptions:
    """The serving options that go to pods, and to the Jobs that check them against the tokenizer."""
    serving, markers = spec.serving, spec.serving.prompt.markers
    return ServingOptions(
        prompt_format=PromptFormat(serving.prompt.format.value),
        fim_prefix="" if markers is None else markers.prefix,
        fim_suffix="" if markers is None else markers.suffix,
        fim_middle="" if markers is None else markers.middle,
        max_input_tokens=spec.engine.limits.input_tokens,
        max_new_tokens=serving.max_new_tokens,
        stop=StopMode(serving.stop.value),
        stop_strings=serving.stop_strings,
        inter_threads=serving.inter_threads,
        intra_threads=serving.intra_threads,
        slo_ms=spec.slo.latency.milliseconds,
        queue_limit=serving.queue.max_requests,
    )


def make_checkpoint_json(checkpoint: Any) -> dict[str, str]:
    """HOTSTART_CHECKPOINT of the Jobs, from ``spec.checkpoint`` of a model or an Engine."""
    return {
        "uri": checkpoint.uri,
        "revision": checkpoint.revision or "",
        "endpoint": checkpoint.endpoint or "",
    }


def make_inspect_hash(spec: CompletionModelSpec) -> str:
    """Hash of all that an inspection depends on: another one means inspect again. 64 hex."""
    return digest_of(
        {
            "checkpoint": make_checkpoint_json(spec.checkpoint),
            "secret": spec.checkpoint.secret_name or "",
            "runtime": str(spec.engine.runtime),
            "prompt": spec.serving.prompt.to_api(),
        }
    )
