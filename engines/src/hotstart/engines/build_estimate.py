"""What a build will need and how long it will take: memory of host and GPU, scratch disk, seconds. Pure.

Estimates from reported builds, for requests of the Job and for the plan that people read; never a limit. Reported for
``trtllm-build`` (peak host memory, seconds; weights in 16 bit unless said): Llama-3 8B 38.5 GB, 129 s; Gemma-2 9B
40.3 GB and 19.4 GB of GPU, 47 s; an 8B in FP8 42 s; Llama-2 7B in FP8 163 s.
"""

from __future__ import annotations

from dataclasses import dataclass

from hotstart.engines.accelerators import GIB
from hotstart.engines.memory_plan import NetworkSizes, make_memory_parts
from hotstart.engines.recipe import EngineRecipe

HOST_BASE = 4 * GIB  # libraries, CUDA and TensorRT's own kernels
HOST_TIMES_WEIGHTS = 2.5  # checkpoint, network and serialized plan at once: 38.5 GB for 16 GB of weights
SECONDS_BASE = 30.0
SECONDS_A_GIB = 7.0  # of weights, per rank; ranks are built at once, each on its own GPU


@dataclass(frozen=True)
class BuildEstimate:
    """``host_memory``, ``gpu_memory`` (of each GPU) and ``scratch`` in bytes; ``seconds`` of the build step alone."""

    seconds: float
    host_memory: int
    gpu_memory: int
    scratch: int


def make_build_estimate(sizes: NetworkSizes, recipe: EngineRecipe) -> BuildEstimate:
    """The estimate for a build with ``trtllm-build``, its ranks at once.

    Raises:
        KeyError: a dtype or quantization that TensorRT-LLM does not have.
    """
    parts, ranks = make_memory_parts(sizes, recipe), recipe.tensor_parallel
    return BuildEstimate(
        seconds=round(SECONDS_BASE + SECONDS_A_GIB * parts.weights / GIB, 1),
        host_memory=HOST_BASE + int(HOST_TIMES_WEIGHTS * parts.weights * ranks),
        gpu_memory=parts.weights + parts.activations + parts.reserve,
        scratch=2 * parts.weights * ranks,  # the converted checkpoint and the engine
    )


def say_build_estimate(estimate: BuildEstimate) -> str:
    """The estimate in words, for a log and a plan."""
    return (
        f"about {max(round(estimate.seconds / 60), 1)} min, {estimate.host_memory / GIB:.0f} GiB of memory, "
        f"{estimate.gpu_memory / GIB:.0f} GiB on each GPU, {estimate.scratch / GIB:.0f} GiB of scratch disk"
    )
