"""From a model's spec to the engine that it needs: recipe, key, memory plan, serving options, inspection hash. Pure.

The recipe's platform comes from the spec and a table of GPUs, never from a node: a key must not move when nodes come
and go (docs/adr/0014). Nodes are compared with it where a GPU is looked for (`core/accelerators.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hotstart.engines import toolchains
from hotstart.engines.accelerators import (
    AcceleratorFacts,
    find_accelerator,
    find_refusal,
    known_mig_profiles,
    make_platform,
)
from hotstart.engines.accelerators import known_products as known_gpus
from hotstart.engines.architectures import MPT_CONVERTER, WEIGHT_ONLY
from hotstart.engines.build_estimate import HOST_BASE, HOST_TIMES_WEIGHTS, make_build_estimate
from hotstart.engines.errors import Terminal
from hotstart.engines.key import engine_name, key_inputs, make_key
from hotstart.engines.memory_plan import MemoryPlan, NetworkSizes, make_memory_plan
from hotstart.engines.recipe import EngineLimits, EngineRecipe, Platform, Toolchain, make_toolchain
from hotstart.engines.splitting import find_split_refusal, find_weight_only_refusal
from hotstart.exchange.messages import PromptFormat, ServingOptions, StopMode
from hotstart.operator.api import CompletionModelSpec, Reason
from hotstart.operator.api.model_spec import Accelerator, Quantization, Runtime
from hotstart.operator.api.status import CheckpointStatus, NetworkStatus
from hotstart.operator.core.gpu_jobs import BuildSize
from hotstart.operator.core.jobs import Failure
from hotstart.operator.core.names import digest_of

#: Of checkpoints that were inspected by a release that did not say network and format.
DEFAULT_CONVERTER, DEFAULT_FORMAT = "hotstart-llama", "safetensors"
SCRATCH_MARGIN = 1.1  # tokenizer, scales, timing cache and the file system's own


@dataclass(frozen=True)
class WantedEngine:
    """The engine that a model needs.

    ``memory`` is None where the network's sizes are not known, and for engines of CPUs. ``refusal`` says why it must
    not be built; one that stands is served all the same, for it was built by another arithmetic. ``size`` is what a
    build with a GPU takes; None for engines of CPUs.
    """

    key: str
    recipe: EngineRecipe
    memory: MemoryPlan | None = None
    refusal: Failure | None = None
    size: BuildSize | None = None

    @property
    def name(self) -> str:
        """Name of its Engine object."""
        return engine_name(self.key)


def decide_wanted_engine(spec: CompletionModelSpec, checkpoint: CheckpointStatus) -> WantedEngine | Failure:
    """The engine for this spec and checkpoint, or why there cannot be one."""
    toolchain = find_toolchain(spec, checkpoint)
    if isinstance(toolchain, Failure):
        return toolchain
    gpu = find_gpu(spec.engine.accelerator, spec.engine.recipe_quantization)
    if isinstance(gpu, Failure):
        return gpu
    recipe = make_recipe(spec, toolchain, gpu)
    memory = None if gpu is None else plan_memory(checkpoint, recipe, gpu)
    refusal = (
        find_sequence_refusal(spec, checkpoint.network)
        or find_splitting_refusal(checkpoint.network, recipe)
        or find_memory_refusal(memory)
    )
    size = None if gpu is None else plan_build(checkpoint, recipe)
    return WantedEngine(make_key(key_inputs(checkpoint.digest, recipe)), recipe, memory, refusal, size)


def find_wanted_engine(spec: CompletionModelSpec, checkpoint: CheckpointStatus | None) -> WantedEngine | None:
    """The engine for this spec and checkpoint; None where there is no checkpoint yet or no such engine."""
    wanted = None if checkpoint is None else decide_wanted_engine(spec, checkpoint)
    return wanted if isinstance(wanted, WantedEngine) else None


def find_toolchain(spec: CompletionModelSpec, checkpoint: CheckpointStatus) -> Toolchain | Failure:
    """The converter and its runtime for the network that was inspected."""
    runtime, quantization = spec.engine.runtime, str(spec.engine.recipe_quantization)
    if runtime is Runtime.CTRANSLATE2 and not checkpoint.architecture:
        return make_toolchain(runtime, DEFAULT_CONVERTER)
    form = checkpoint.format or DEFAULT_FORMAT
    try:
        return toolchains.find_toolchain(
            runtime, checkpoint.architecture, checkpoint_format=form, quantization=quantization
        )
    except Terminal as refusal:
        return Failure(refusal.reason, refusal.message, False)


def find_gpu(accelerator: Accelerator | None, quantization: Quantization) -> AcceleratorFacts | Failure | None:
    """The GPU of the spec in the table of GPUs; None for engines of CPUs."""
    if accelerator is None:
        return None
    gpu = find_accelerator(accelerator.product, accelerator.mig_profile)
    if gpu is not None:
        refusal = find_refusal(gpu, str(quantization))
        return Failure(Reason.UNSUPPORTED_RECIPE, refusal, False) if refusal else gpu
    profiles = known_mig_profiles(accelerator.product)
    if find_accelerator(accelerator.product) is not None:
        offered = f"it can be cut into {', '.join(profiles)}" if profiles else "it cannot be partitioned"
        message = f"{accelerator.product} has no MIG profile {accelerator.mig_profile}: {offered}. Change "
        return Failure(Reason.ACCELERATOR_MISMATCH, f"{message}spec.engine.accelerator.migProfile.", False)
    message = (
        f"spec.engine.accelerator.product is {accelerator.product!r}, which this release does not know; it takes the "
        f"value of a node's label nvidia.com/gpu.product. Known are {', '.join(known_gpus())}."
    )
    return Failure(Reason.UNSUPPORTED_RECIPE, message, False)


def make_recipe(spec: CompletionModelSpec, toolchain: Toolchain, gpu: AcceleratorFacts | None) -> EngineRecipe:
    """The recipe, normalised."""
    engine = spec.engine
    return EngineRecipe(
        toolchain=toolchain,
        dtype=str(engine.recipe_dtype),
        quantization=str(engine.recipe_quantization),
        tensor_parallel=engine.tensor_parallel,
        limits=EngineLimits(engine.limits.batch_size, engine.limits.input_tokens, engine.limits.sequence_tokens),
        platform=Platform() if gpu is None else make_platform(gpu),
        rebuild=str(engine.rebuild),
    )


def make_sizes(checkpoint: CheckpointStatus) -> NetworkSizes | None:
    """What of the network decides its memory; None where the inspection could not tell."""
    network = checkpoint.network
    if network is None or checkpoint.parameters is None:
        return None
    return NetworkSizes(
        parameters=checkpoint.parameters,
        embedding_parameters=network.embedding_parameters,
        layers=network.layers,
        kv_heads=network.kv_heads,
        head_dim=network.head_dim,
        hidden=network.hidden,
        vocab=network.vocab,
        intermediate=network.intermediate,
    )


def plan_memory(checkpoint: CheckpointStatus, recipe: EngineRecipe, gpu: AcceleratorFacts) -> MemoryPlan | None:
    """The memory plan; None where the network's sizes are not known."""
    sizes = make_sizes(checkpoint)
    return None if sizes is None else make_memory_plan(sizes, recipe, gpu)


def plan_build(checkpoint: CheckpointStatus, recipe: EngineRecipe) -> BuildSize:
    """What the build needs of its node; by the checkpoint's bytes alone where the network's sizes are not known.

    The scratch disk holds the checkpoint, which the verification asks, what was converted, and the engine.
    """
    sizes, given = make_sizes(checkpoint), checkpoint.size_bytes or 0
    if sizes is None:
        return BuildSize(HOST_BASE + int(HOST_TIMES_WEIGHTS * given), int(3 * given * SCRATCH_MARGIN))
    estimate = make_build_estimate(sizes, recipe)
    scratch = int((given + estimate.scratch) * SCRATCH_MARGIN)
    return BuildSize(estimate.host_memory, scratch, estimate.seconds)


def find_memory_refusal(memory: MemoryPlan | None) -> Failure | None:
    """DoesNotFit with the arithmetic."""
    if memory is None or memory.fits:
        return None
    return Failure(Reason.DOES_NOT_FIT, sentence_of(memory.sentence), False)


def find_splitting_refusal(network: NetworkStatus | None, recipe: EngineRecipe) -> Failure | None:
    """Heads that cannot be shared out evenly among the ranks, and layers of our converter that cannot be quantized."""
    if network is None or network.heads == 0 or recipe.toolchain.runtime != Runtime.TENSORRT_LLM:
        return None
    ranks = recipe.tensor_parallel
    refusal = find_split_refusal(network.heads, network.kv_heads, ranks)
    if not refusal and recipe.toolchain.converter == MPT_CONVERTER and recipe.quantization in WEIGHT_ONLY:
        refusal = find_weight_only_refusal(network.hidden, network.kv_heads, network.head_dim, ranks)
    return Failure(Reason.UNSUPPORTED_RECIPE, refusal, False) if refusal else None


def find_sequence_refusal(spec: CompletionModelSpec, network: NetworkStatus | None) -> Failure | None:
    """Sequences beyond what the network was trained for: its completions would be noise there."""
    wanted = spec.engine.limits.sequence_tokens
    if network is None or network.context_length == 0 or wanted <= network.context_length:
        return None
    message = (
        f"spec.engine.limits.sequenceTokens is {wanted}, but the checkpoint was trained for sequences of "
        f"{network.context_length} tokens: lower it to {network.context_length} at most (and inputTokens with it)."
    )
    return Failure(Reason.UNSUPPORTED_RECIPE, message, False)


def sentence_of(text: str) -> str:
    """The text with a capital letter at its start."""
    return text[:1].upper() + text[1:]


# Requests that may wait in a pod. The router's queue is the only deep one; this is for what several routers send at the
# same moment, and for requests whose cancellation is still on its way.
POD_QUEUE = 8


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
        queue_limit=POD_QUEUE,
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
