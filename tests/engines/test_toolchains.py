"""Toolchains by network and recipe, and what a build is estimated to need."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hotstart.engines.accelerators import GIB
from hotstart.engines.architectures import CTRANSLATE2, TENSORRT_LLM, TENSORRT_LLM_NAMES, known_names
from hotstart.engines.build_estimate import make_build_estimate, say_build_estimate
from hotstart.engines.errors import Reason, Terminal
from hotstart.engines.memory_plan import NetworkSizes
from hotstart.engines.recipe import CTRANSLATE2_TOOLCHAIN, EngineLimits, EngineRecipe
from hotstart.engines.toolchains import AS_IT_IS, QUANTIZE, find_toolchain

LLAMA_8B = NetworkSizes(8_030_261_248, 2 * 128_256 * 4096, 32, 8, 128, 4096, 128_256, 14_336)


def test_llama_on_ctranslate2_has_the_toolchain_that_it_always_had() -> None:
    assert find_toolchain(CTRANSLATE2, "LlamaForCausalLM", checkpoint_format="gguf") == CTRANSLATE2_TOOLCHAIN
    assert find_toolchain(CTRANSLATE2, "MPTForCausalLM").converter == "hotstart-mpt"


def test_tensorrt_llm_names_its_libraries_and_not_its_image() -> None:
    toolchain = find_toolchain(TENSORRT_LLM, "MPTForCausalLM")
    assert (toolchain.converter, toolchain.runtime_version) == ("hotstart-mpt", "1.2.1")
    assert dict(toolchain.libraries) == {"tensorrt": "10.14.1.48", "hotstart-build-options": "1"}


@pytest.mark.parametrize("name", known_names(TENSORRT_LLM))
def test_every_known_network_has_a_converter(name: str) -> None:
    toolchain = find_toolchain(TENSORRT_LLM, name)
    assert toolchain.converter == "hotstart-mpt" or toolchain.converter.endswith("/convert_checkpoint.py")


def test_fp8_is_calibrated_by_the_script_that_needs_a_gpu() -> None:
    toolchain = find_toolchain(TENSORRT_LLM, "LlamaForCausalLM", quantization="fp8")
    assert toolchain.converter == QUANTIZE
    with pytest.raises(Terminal, match="MPTForCausalLM cannot be quantized to fp8") as failure:
        find_toolchain(TENSORRT_LLM, "MPTForCausalLM", quantization="fp8")
    assert failure.value.reason is Reason.UNSUPPORTED_RECIPE


@pytest.mark.parametrize("name", sorted(TENSORRT_LLM_NAMES))
def test_a_tensorrt_llm_checkpoint_is_built_as_it_is(name: str) -> None:
    toolchain = find_toolchain(TENSORRT_LLM, name, checkpoint_format="tensorrt_llm", quantization="fp8")
    assert toolchain.converter == AS_IT_IS


def test_what_a_runtime_does_not_build_is_refused() -> None:
    with pytest.raises(Terminal) as failure:
        find_toolchain(CTRANSLATE2, "FalconForCausalLM")
    assert failure.value.reason is Reason.UNSUPPORTED_ARCHITECTURE


def test_the_estimate_covers_what_was_reported_for_a_llama_of_8b() -> None:
    recipe = EngineRecipe(
        find_toolchain(TENSORRT_LLM, "LlamaForCausalLM"), "bfloat16", "none", limits=EngineLimits(64, 1024, 2048)
    )
    estimate = make_build_estimate(LLAMA_8B, recipe)
    assert 38.5e9 < estimate.host_memory < 60e9  # reported: 38.5 GB
    assert 60 < estimate.seconds < 300  # reported: 129 s
    assert estimate.scratch > 2 * 16e9
    assert "min" in say_build_estimate(estimate)
    split = make_build_estimate(LLAMA_8B, replace(recipe, tensor_parallel=4))
    assert split.seconds < estimate.seconds
    assert split.gpu_memory < estimate.gpu_memory
    assert split.host_memory > estimate.host_memory - 4 * GIB
