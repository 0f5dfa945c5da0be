"""The memory plan: its arithmetic for replit-code, and what must hold for any network, limits and GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hotstart.engines.accelerators import GIB, AcceleratorFacts, find_accelerator
from hotstart.engines.memory_plan import (
    MOST_TOKENS_A_PASS,
    TOKENS_PER_BLOCK,
    MemoryPlan,
    NetworkSizes,
    make_memory_plan,
    max_num_tokens,
)
from hotstart.engines.recipe import EngineLimits, EngineRecipe, make_tensorrt_llm_toolchain
from hypothesis import given
from hypothesis import strategies as st

#: replit-code-v1_5-3b: 3.322 B parameters, tied embeddings, KV cache of 128 KiB a token in 16 bit.
REPLIT = NetworkSizes(
    parameters=3_321_989_120,
    embedding_parameters=32768 * 3072,
    layers=32,
    kv_heads=8,
    head_dim=128,
    hidden=3072,
    vocab=32768,
    intermediate=12288,
)
RECIPE = EngineRecipe(
    make_tensorrt_llm_toolchain("hotstart-mpt", 1), "float16", "none", limits=EngineLimits(64, 3840, 4096)
)


def gpu(product: str, mig: str | None = None) -> AcceleratorFacts:
    found = find_accelerator(product, mig)
    assert found is not None
    return found


H100 = gpu("NVIDIA-H100-80GB-HBM3")


def test_replit_code_on_an_h100() -> None:
    plan = make_memory_plan(REPLIT, RECIPE, H100)
    assert plan.kv_per_token == 128 * 1024
    assert plan.weights == 2 * (REPLIT.parameters + 32768 * 3072)  # lm_head is stored beside the embedding
    assert plan.fits
    assert plan.kv_tokens == 528_512
    assert plan.sentence == (
        "NVIDIA-H100-80GB-HBM3 (79.6 GiB): weights 6.4 GiB + activations 0.6 GiB + reserve 1.0 GiB; the rest holds "
        "528512 tokens of KV cache at 128 KiB, enough for all 64 of a batch at 4096 tokens each."
    )


def test_a_batch_that_an_a10_cannot_hold_at_its_longest_is_counted() -> None:
    plan = make_memory_plan(REPLIT, RECIPE, gpu("NVIDIA-A10"))
    assert plan.fits
    assert "enough for 26 of the 64 of a batch" in plan.sentence


def test_what_cannot_fit_is_refused_with_the_arithmetic() -> None:
    plan = make_memory_plan(REPLIT, RECIPE, gpu("NVIDIA-A100-SXM4-40GB", "1g.5gb"))
    assert not plan.fits
    assert plan.sentence == (
        "needs 8.5 GiB on each GPU: weights 6.4 GiB + activations 0.6 GiB + reserve 1.0 GiB + KV cache of one sequence "
        "of 4096 tokens 0.6 GiB; NVIDIA-A100-SXM4-40GB 1g.5gb has 4.5 GiB: quantize, raise engine.tensorParallel, "
        "lower engine.limits, or choose a larger accelerator."
    )


def test_quantized_weights_leave_embedding_and_projection_in_the_dtype() -> None:
    kept = 2 * 32768 * 3072 * 2
    linear = REPLIT.parameters - REPLIT.embedding_parameters
    int8 = make_memory_plan(REPLIT, replace(RECIPE, quantization="int8_weight_only"), H100).weights
    int4 = make_memory_plan(REPLIT, replace(RECIPE, quantization="int4_weight_only"), H100).weights
    assert int8 - kept == pytest.approx(linear, rel=1e-3)
    assert int4 - kept == pytest.approx(linear / 2, rel=2e-3)


def test_fp8_halves_the_cache_too() -> None:
    assert make_memory_plan(REPLIT, replace(RECIPE, quantization="fp8"), H100).kv_per_token == 64 * 1024


def test_more_ranks_than_kv_heads_repeat_them() -> None:
    plans = [make_memory_plan(REPLIT, replace(RECIPE, tensor_parallel=ranks), H100) for ranks in (8, 16)]
    assert plans[0].kv_per_token == plans[1].kv_per_token == 16 * 1024


def test_sizes_are_read_from_what_an_inspection_leaves() -> None:
    facts = {"parameters": 100, "vocab": 10, "hidden": 3, "layers": 2, "kvHeads": 1, "headDim": 4, "intermediate": 12}
    assert NetworkSizes.from_facts(facts) == NetworkSizes(100, 60, 2, 1, 4, 3, 10, 12)
    assert NetworkSizes.from_facts(facts | {"tiedEmbeddings": True}).embedding_parameters == 30
    assert NetworkSizes.from_facts(facts | {"embeddingParameters": 31}).embedding_parameters == 31
    with pytest.raises(KeyError, match="kvHeads"):
        NetworkSizes.from_facts({name: value for name, value in facts.items() if name != "kvHeads"})


@pytest.mark.parametrize(
    ("batch", "tokens", "expected"), [(1, 3840, 3840), (64, 3840, MOST_TOKENS_A_PASS), (8, 96, 768), (64, 16384, 16384)]
)
def test_tokens_of_a_pass(batch: int, tokens: int, expected: int) -> None:
    assert max_num_tokens(EngineLimits(batch, tokens, tokens + 32)) == expected


limits = st.builds(
    lambda batch, tokens, new: EngineLimits(batch, tokens, tokens + new),
    st.integers(1, 512),
    st.integers(1, 16384),
    st.integers(1, 4096),
)
recipes = st.builds(
    lambda dtype, quantization, ranks, limits: replace(
        RECIPE, dtype=dtype, quantization=quantization, tensor_parallel=ranks, limits=limits
    ),
    st.sampled_from(["float16", "bfloat16", "float32"]),
    st.sampled_from(["none", "int8_weight_only", "int4_weight_only", "fp8"]),
    st.sampled_from([1, 2, 4, 8]),
    limits,
)
networks = st.builds(
    lambda layers, kv_heads, head_dim, groups, vocab, tied: NetworkSizes(
        parameters=(embedding := vocab * kv_heads * groups * head_dim * (1 if tied else 2))
        + layers * 12 * (kv_heads * groups * head_dim) ** 2,
        embedding_parameters=embedding,
        layers=layers,
        kv_heads=kv_heads,
        head_dim=head_dim,
        hidden=kv_heads * groups * head_dim,
        vocab=vocab,
    ),
    st.integers(1, 96),
    st.sampled_from([1, 2, 8, 32]),
    st.sampled_from([64, 128]),
    st.sampled_from([1, 4]),
    st.integers(256, 262_144),
    st.booleans(),
)
gpus = st.sampled_from(["NVIDIA-L4", "NVIDIA-A100-SXM4-80GB", "NVIDIA-H200"]).map(gpu)


@given(networks, recipes, gpus)
def test_the_verdict_is_that_of_the_arithmetic(
    network: NetworkSizes, recipe: EngineRecipe, on: AcceleratorFacts
) -> None:
    plan = make_memory_plan(network, recipe, on)
    assert min(plan.weights, plan.kv_per_token, plan.activations, plan.reserve) > 0
    assert plan.fits == (plan.kv_tokens >= recipe.limits.sequence_tokens)
    assert plan.kv_tokens % TOKENS_PER_BLOCK == 0
    assert plan.weights + plan.activations + plan.reserve + plan.kv_tokens * plan.kv_per_token <= max(
        on.memory, plan.weights + plan.activations + plan.reserve
    )
    slack = TOKENS_PER_BLOCK * plan.kv_per_token / 0.9 + 2
    assert plan.total <= on.memory if plan.fits else plan.total > on.memory - slack
    assert plan.sentence.startswith(
        "needs " if not plan.fits else ("each of" if recipe.tensor_parallel > 1 else "NVIDIA")
    )


@given(networks, recipes, gpus, st.integers(0, 64), st.integers(0, 512), st.integers(0, 2048))
def test_larger_limits_never_need_less(
    network: NetworkSizes, recipe: EngineRecipe, on: AcceleratorFacts, batch: int, tokens: int, new: int
) -> None:
    old = recipe.limits
    larger = EngineLimits(old.batch_size + batch, old.input_tokens + tokens, old.sequence_tokens + tokens + new)
    small, large = make_memory_plan(network, recipe, on), make_memory_plan(network, replace(recipe, limits=larger), on)
    assert large.total >= small.total
    assert large.kv_tokens <= small.kv_tokens
    assert small.fits or not large.fits


@given(networks, recipes, gpus)
def test_more_ranks_never_need_more_weights_or_cache_on_each(
    network: NetworkSizes, recipe: EngineRecipe, on: AcceleratorFacts
) -> None:
    def plan(ranks: int) -> MemoryPlan:
        return make_memory_plan(network, replace(recipe, tensor_parallel=ranks), on)

    for fewer, more in ((1, 2), (2, 4), (4, 8)):
        assert plan(more).weights <= plan(fewer).weights
        assert plan(more).kv_per_token <= plan(fewer).kv_per_token
        assert plan(more).activations <= plan(fewer).activations


@given(networks, recipes, st.integers(1, 300), st.integers(0, 300))
def test_a_larger_gpu_holds_at_least_as_much(network: NetworkSizes, recipe: EngineRecipe, gib: int, more: int) -> None:
    small = make_memory_plan(network, recipe, AcceleratorFacts("NVIDIA-X", 90, gib * GIB))
    large = make_memory_plan(network, recipe, AcceleratorFacts("NVIDIA-X", 90, (gib + more) * GIB))
    assert large.kv_tokens >= small.kv_tokens
    assert large.fits or not small.fits


@given(networks, recipes, gpus)
def test_fewer_bits_never_need_more(network: NetworkSizes, recipe: EngineRecipe, on: AcceleratorFacts) -> None:
    weights = [
        make_memory_plan(network, replace(recipe, quantization=name), on).weights
        for name in ("none", "int8_weight_only", "int4_weight_only")
    ]
    assert weights == sorted(weights, reverse=True)
