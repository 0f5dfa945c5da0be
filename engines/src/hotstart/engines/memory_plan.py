"""Whether an engine fits its GPU, worked out before anything is built: weights, KV cache, activations, reserve. Pure.

All of one rank, in bytes: with tensor parallelism each rank is one GPU. The figures are upper bounds by arithmetic, not
measurements; what is assumed rather than derived is named at its constant. The backend's own rule decides: the paged KV
cache must hold at least one sequence to its end, or it refuses to start ("maxTokensInPagedKvCache must be large enough
to process at least 1 sequence to completion").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hotstart.engines.accelerators import GIB, MIB, AcceleratorFacts
from hotstart.engines.recipe import EngineLimits, EngineRecipe

#: Most tokens that one forward pass computes, over all its requests; TensorRT-LLM's own default.
MOST_TOKENS_A_PASS = 8192
TOKENS_PER_BLOCK = 32  # of the paged KV cache; TensorRT-LLM's default
#: Share of what is left after loading that the backend gives to the KV cache (kv_cache_free_gpu_mem_fraction).
KV_CACHE_SHARE = 0.9
#: CUDA context, modules and workspaces of cuBLAS and the plug-ins. Assumed; ``make test-gpu`` prints what it is.
RESERVE = 1024 * MIB
RESERVE_OF_NCCL = 512 * MIB  # for each rank where there are several; assumed
#: float32 rows of logits that the sampler holds for each request: logits, probabilities and their sorted copy.
LOGIT_COPIES = 3
#: Tensors of the hidden size that live at once around a layer: input, residual, the norm's and the layer's output.
HIDDEN_COPIES = 4

DTYPE_BYTES: Mapping[str, int] = {"float16": 2, "bfloat16": 2, "float32": 4}
#: Bytes of one weight of a linear layer; ``none`` means those of the dtype.
WEIGHT_BYTES: Mapping[str, float] = {"int8_weight_only": 1.0, "int4_weight_only": 0.5, "fp8": 1.0}


@dataclass(frozen=True)
class NetworkSizes:
    """What of a network decides its memory. ``embedding_parameters`` of ``parameters`` are embeddings, counted once
    where input and output share them."""

    parameters: int
    embedding_parameters: int
    layers: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    intermediate: int = 0  # 0: taken as four times the hidden size

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> NetworkSizes:
        """From the JSON that an inspection leaves (``status.checkpoint.facts``; the same names in a manifest).

        Raises:
            KeyError, TypeError, ValueError: a size is missing or no number.
        """
        vocab, hidden = int(facts["vocab"]), int(facts["hidden"])
        embeddings = facts.get("embeddingParameters") or vocab * hidden * (1 if facts.get("tiedEmbeddings") else 2)
        return cls(
            parameters=int(facts["parameters"]),
            embedding_parameters=min(int(embeddings), int(facts["parameters"])),
            layers=int(facts["layers"]),
            kv_heads=int(facts["kvHeads"]),
            head_dim=int(facts["headDim"]),
            hidden=hidden,
            vocab=vocab,
            intermediate=int(facts.get("intermediate", 0)),
        )


@dataclass(frozen=True)
class MemoryParts:
    """Bytes of one rank; ``kv_per_token`` is that of one token in the KV cache."""

    weights: int
    kv_per_token: int
    activations: int
    reserve: int

    @property
    def fixed(self) -> int:
        """All but the KV cache."""
        return self.weights + self.activations + self.reserve


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on each GPU; ``kv_tokens`` is how many tokens the KV cache holds beside the rest.

    ``total`` is the least that the engine needs: all of it and a KV cache for one sequence.
    """

    weights: int
    kv_per_token: int
    activations: int
    reserve: int
    total: int
    kv_tokens: int
    fits: bool
    sentence: str


def max_num_tokens(limits: EngineLimits) -> int:
    """Tokens of one forward pass that an engine is built for (``--max_num_tokens``): the longest prompt, or a batch."""
    most = max(limits.input_tokens, limits.batch_size)
    return max(most, min(MOST_TOKENS_A_PASS, limits.input_tokens * limits.batch_size))


def kv_cache_bytes(recipe: EngineRecipe) -> int:
    """Bytes of one number in the KV cache: one with fp8, whose checkpoint has a scale for it, else the dtype's."""
    return 1 if recipe.quantization == "fp8" else DTYPE_BYTES[recipe.dtype]


def make_memory_plan(sizes: NetworkSizes, recipe: EngineRecipe, accelerator: AcceleratorFacts) -> MemoryPlan:
    """The plan for one rank.

    Raises:
        KeyError: a dtype or quantization that TensorRT-LLM does not have.
    """
    parts, limits = make_memory_parts(sizes, recipe), recipe.limits
    sequence = -(-limits.sequence_tokens // TOKENS_PER_BLOCK) * TOKENS_PER_BLOCK
    block = TOKENS_PER_BLOCK * parts.kv_per_token
    kv_tokens = int(max(accelerator.memory - parts.fixed, 0) * KV_CACHE_SHARE) // block * TOKENS_PER_BLOCK
    plan = MemoryPlan(
        weights=parts.weights,
        kv_per_token=parts.kv_per_token,
        activations=parts.activations,
        reserve=parts.reserve,
        total=parts.fixed + int(sequence * parts.kv_per_token / KV_CACHE_SHARE) + 1,
        kv_tokens=kv_tokens,
        fits=kv_tokens >= sequence,
        sentence="",
    )
    if not plan.fits:
        return replace(plan, sentence=_say_too_large(plan, limits, accelerator))
    return replace(plan, sentence=_say_fits(plan, limits, accelerator, recipe.tensor_parallel))


def make_memory_parts(sizes: NetworkSizes, recipe: EngineRecipe) -> MemoryParts:
    """What one rank needs, whatever the GPU.

    Raises:
        KeyError: a dtype or quantization that TensorRT-LLM does not have.
    """
    ranks = recipe.tensor_parallel
    return MemoryParts(
        weights=_weights(sizes, recipe),
        kv_per_token=2 * sizes.layers * -(-sizes.kv_heads // ranks) * sizes.head_dim * kv_cache_bytes(recipe),
        activations=_activations(sizes, recipe),
        reserve=RESERVE + (RESERVE_OF_NCCL if ranks > 1 else 0),
    )


def _weights(sizes: NetworkSizes, recipe: EngineRecipe) -> int:
    """Embedding (whole on each rank) and lm_head stay in the dtype, even where a checkpoint holds them once."""
    dtype, ranks = DTYPE_BYTES[recipe.dtype], recipe.tensor_parallel
    embedding = sizes.vocab * sizes.hidden
    kept = (embedding + -(-sizes.vocab // ranks) * sizes.hidden) * dtype
    linear = -(-(sizes.parameters - sizes.embedding_parameters) // ranks)
    if recipe.quantization == "none":
        return kept + linear * dtype
    scales = -(-linear // sizes.hidden) * dtype  # one for each output column, whose length is at least the hidden size
    return kept + int(linear * WEIGHT_BYTES[recipe.quantization]) + scales


def _activations(sizes: NetworkSizes, recipe: EngineRecipe) -> int:
    """The widest moment of one pass: around an MLP (two of its inner tensors, where it is gated), or the logits."""
    ranks = recipe.tensor_parallel
    inner = -(-(sizes.intermediate or 4 * sizes.hidden) // ranks)
    layer = max_num_tokens(recipe.limits) * (HIDDEN_COPIES * sizes.hidden + 2 * inner) * DTYPE_BYTES[recipe.dtype]
    return layer + LOGIT_COPIES * recipe.limits.batch_size * sizes.vocab * 4


def _say_fits(plan: MemoryPlan, limits: EngineLimits, accelerator: AcceleratorFacts, ranks: int) -> str:
    at_once = plan.kv_tokens // limits.sequence_tokens
    where = _name(accelerator) if ranks == 1 else f"each of {ranks} {_name(accelerator)}"
    enough = (
        f"all {limits.batch_size} of a batch"
        if at_once >= limits.batch_size
        else f"{at_once} of the {limits.batch_size} of a batch"
    )
    return (
        f"{where} ({_gib(accelerator.memory)}): {_arithmetic(plan)}; the rest holds {plan.kv_tokens} tokens of "
        f"KV cache at {plan.kv_per_token / 1024:g} KiB, enough for {enough} at {limits.sequence_tokens} tokens each."
    )


def _say_too_large(plan: MemoryPlan, limits: EngineLimits, accelerator: AcceleratorFacts) -> str:
    sequence = plan.total - plan.weights - plan.activations - plan.reserve
    return (
        f"needs {_gib(plan.total)} on each GPU: {_arithmetic(plan)} + KV cache of one sequence of "
        f"{limits.sequence_tokens} tokens {_gib(sequence)}; {_name(accelerator)} has {_gib(accelerator.memory)}: "
        "quantize, raise engine.tensorParallel, lower engine.limits, or choose a larger accelerator."
    )


def _arithmetic(plan: MemoryPlan) -> str:
    return f"weights {_gib(plan.weights)} + activations {_gib(plan.activations)} + reserve {_gib(plan.reserve)}"


def _name(accelerator: AcceleratorFacts) -> str:
    return f"{accelerator.product} {accelerator.mig_profile}".strip()


def _gib(value: int) -> str:
    return f"{value / GIB:.1f} GiB"
