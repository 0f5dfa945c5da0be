"""Command lines of TensorRT-LLM's tools, word for word, and the config that an engine comes with.

``HOTSTART_UPDATE_GOLDEN=1`` rewrites the golden file; whoever does so raises ``BUILD_OPTIONS_VERSION`` too, for engines
that were built with other options must have other keys.
"""

from __future__ import annotations

import json
import os
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hotstart.engines.errors import Reason, Terminal
from hotstart.engines.memory_plan import max_num_tokens
from hotstart.engines.recipe import BUILD_OPTIONS_VERSION, EngineLimits, EngineRecipe
from hotstart.engines.runtimes.tensorrt_llm.build_command import (
    BuildPlaces,
    checkpoint_files,
    engine_files,
    make_build_command,
    make_quantize_command,
)
from hotstart.engines.runtimes.tensorrt_llm.engine_config import find_differences
from hotstart.engines.toolchains import find_toolchain
from hypothesis import given
from hypothesis import strategies as st

GOLDEN = Path(__file__).with_name("golden") / "trtllm_commands.json"
MPT = find_toolchain("tensorrt_llm", "MPTForCausalLM")
LLAMA_FP8 = find_toolchain("tensorrt_llm", "LlamaForCausalLM", quantization="fp8")
REPLIT = EngineRecipe(MPT, "float16", "none", limits=EngineLimits(64, 3840, 4096))
PLACES = BuildPlaces("/scratch/checkpoint", "/scratch/engine", "/scratch/timing.cache.new", "/scratch/timing.cache")
RECIPES = {
    "replit-code float16": REPLIT,
    "replit-code int8 bfloat16": replace(REPLIT, dtype="bfloat16", quantization="int8_weight_only"),
    "replit-code on two GPUs": replace(REPLIT, tensor_parallel=2),
    "llama fp8": replace(REPLIT, toolchain=LLAMA_FP8, quantization="fp8"),
}


def test_commands_are_those_that_were_looked_at() -> None:
    found: dict[str, Any] = {"options version": BUILD_OPTIONS_VERSION}
    for name, recipe in RECIPES.items():
        command = make_build_command(recipe, PLACES)
        found[name] = {"argv": command.argv, "environment": command.environment, "files": command.files}
    command = make_quantize_command(RECIPES["llama fp8"], "/scratch/model", "/scratch/checkpoint", "/scratch/texts")
    found["quantize"] = {"argv": command.argv, "environment": command.environment, "files": command.files}
    text = json.dumps(found, indent=1) + "\n"
    if os.environ.get("HOTSTART_UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_every_option_whose_default_would_surprise_is_given() -> None:
    options = _options(make_build_command(REPLIT, PLACES).argv)
    assert options["--max_seq_len"] == "4096"  # an MPT config has none: 2048
    assert options["--max_batch_size"] == "64"  # 2048
    assert options["--max_input_len"] == "3840"  # 1024
    assert options["--max_num_tokens"] == "8192"
    assert options["--gemm_plugin"] == "float16"  # off
    assert options["--output_timing_cache"] == "/scratch/timing.cache.new"  # in the working directory
    assert options["--logits_dtype"] == "float32"
    gone = {"--tp_size", "--pp_size", "--multi_block_mode", "--max_output_len", "--auto_parallel", "--paged_kv_cache"}
    assert not gone & options.keys()
    assert not {"--strip_plan", "--fast_build", "--weight_streaming"} & options.keys()


def test_a_first_build_has_no_timing_cache_to_read() -> None:
    first = replace(PLACES, timing_cache_in="")
    assert "--input_timing_cache" not in make_build_command(REPLIT, first).argv


def test_fp8_uses_kernels_and_cache_of_eight_bits() -> None:
    options = _options(make_build_command(RECIPES["llama fp8"], PLACES).argv)
    assert (options["--gemm_plugin"], options["--use_fp8_context_fmha"]) == ("disable", "enable")
    quantized = _options(make_quantize_command(RECIPES["llama fp8"], "m", "o", "t").argv)
    assert (quantized["--qformat"], quantized["--kv_cache_dtype"]) == ("fp8", "fp8")
    assert quantized["--calib_dataset"] == "t"  # else it is fetched from the hub


@pytest.mark.parametrize(
    ("field", "value"), [("dtype", "float32"), ("dtype", "auto"), ("quantization", "int8"), ("quantization", "")]
)
def test_what_this_runtime_does_not_build_is_named(field: str, value: str) -> None:
    with pytest.raises(Terminal, match=f"engine.{field} is {value}; .* it can be ") as failure:
        make_build_command(replace(REPLIT, **{field: value}), PLACES)  # type: ignore[arg-type]
    assert failure.value.reason is Reason.UNSUPPORTED_RECIPE


@given(st.integers(1, 512), st.integers(1, 16384), st.integers(1, 512), st.sampled_from([1, 2, 4, 8]))
def test_limits_reach_the_command_and_fit_one_another(batch: int, tokens: int, new: int, ranks: int) -> None:
    limits = EngineLimits(batch, tokens, tokens + new)
    command = make_build_command(replace(REPLIT, limits=limits, tensor_parallel=ranks), PLACES)
    options = _options(command.argv)
    assert int(options["--max_num_tokens"]) == max_num_tokens(limits) >= max(batch, tokens)
    assert 1 <= int(options["--opt_num_tokens"]) <= int(options["--max_num_tokens"])
    assert options["--workers"] == str(ranks)
    assert (options["--nccl_plugin"] == "disable") == (ranks == 1)
    assert command.files == engine_files(ranks) == ("config.json", *(f"rank{n}.engine" for n in range(ranks)))
    assert checkpoint_files(ranks)[-1] == f"rank{ranks - 1}.safetensors"


ALGORITHMS = {"none": None, "int8_weight_only": "W8A16", "int4_weight_only": "W4A16", "fp8": "FP8"}


def make_config(recipe: EngineRecipe) -> dict[str, Any]:
    """config.json as ``trtllm-build`` writes it: version, the checkpoint's config, the build's."""
    return {
        "version": "1.2.1",
        "pretrained_config": {
            "architecture": "MPTForCausalLM",
            "dtype": recipe.dtype,
            "logits_dtype": "float32",
            "quantization": {"quant_algo": ALGORITHMS[recipe.quantization], "kv_cache_quant_algo": None},
            "mapping": {"world_size": recipe.tensor_parallel, "tp_size": recipe.tensor_parallel, "pp_size": 1},
        },
        "build_config": {
            "max_input_len": recipe.limits.input_tokens,
            "max_seq_len": recipe.limits.sequence_tokens,
            "max_batch_size": recipe.limits.batch_size,
            "max_beam_width": 1,
            "max_num_tokens": max_num_tokens(recipe.limits),
            "kv_cache_type": "PAGED",
            "plugin_config": {
                "tokens_per_block": 32,
                "remove_input_padding": True,
                "context_fmha": True,
                "use_paged_context_fmha": True,
                "gemm_plugin": None if recipe.quantization == "fp8" else recipe.dtype,
            },
            "lora_config": {},
        },
    }


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_an_engine_as_asked_for_differs_in_nothing(recipe: EngineRecipe) -> None:
    config = make_config(recipe)
    assert find_differences(config, recipe) == ()
    for spelling in ("paged", "KVCacheType.PAGED"):
        config["build_config"]["kv_cache_type"] = spelling
        assert find_differences(config, recipe) == ()


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("build_config", "max_seq_len"), 2048, "build_config.max_seq_len: 2048, not 4096"),
        (("version",), "1.2.0", "version: 1.2.0, not 1.2.1"),
        (("pretrained_config", "mapping", "tp_size"), 2, "pretrained_config.mapping.tp_size: 2, not 1"),
        (("build_config", "kv_cache_type"), "CONTINUOUS", "build_config.kv_cache_type: CONTINUOUS, not PAGED"),
        (
            ("build_config", "plugin_config", "use_paged_context_fmha"),
            False,
            "build_config.plugin_config.use_paged_context_fmha: False, not True",
        ),
        (
            ("pretrained_config", "quantization", "quant_algo"),
            "W8A16",
            "pretrained_config.quantization.quant_algo: W8A16, not None",
        ),
        (("pretrained_config", "logits_dtype"), "float16", "pretrained_config.logits_dtype: float16, not float32"),
        (
            ("build_config", "plugin_config", "gemm_plugin"),
            None,
            "build_config.plugin_config.gemm_plugin: None, not float16",
        ),
        (
            ("build_config", "plugin_config", "context_fmha"),
            False,
            "build_config.plugin_config.context_fmha: False, not True",
        ),
        (("build_config",), None, "build_config.max_batch_size: absent, not 64"),
    ],
)
def test_an_engine_that_was_built_otherwise_is_told(path: tuple[str, ...], value: Any, said: str) -> None:
    config = deepcopy(make_config(REPLIT))
    inner = config
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    assert said in find_differences(config, REPLIT)


def test_an_engine_that_was_not_quantized_is_told() -> None:
    config = make_config(REPLIT)
    said = find_differences(config, replace(REPLIT, quantization="int8_weight_only"))
    assert said == ("pretrained_config.quantization.quant_algo: None, not W8A16",)
    del config["pretrained_config"]["quantization"]
    assert find_differences(config, REPLIT) == ()


@pytest.mark.parametrize("config", [None, [], "x", {}, {"version": {}}])
def test_a_config_of_another_form_differs(config: Any) -> None:
    assert find_differences(config, REPLIT)


def _options(argv: tuple[str, ...]) -> dict[str, str]:
    """Options with the word after each; flags have the next option."""
    return {word: (*argv, "")[number + 1] for number, word in enumerate(argv) if word.startswith("--")}
