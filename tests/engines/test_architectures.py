"""The table of networks, and the exact commands for TensorRT-LLM's converters.

The commands are held against the options that the scripts of TensorRT-LLM 1.2.1 declare; no machine of this project
can run them.
"""

from __future__ import annotations

import pytest
from hotstart.engines.architectures import (
    ARCHITECTURES,
    CTRANSLATE2,
    FORMATS,
    OURS,
    TENSORRT_LLM,
    Architecture,
    ConvertOptions,
    check_buildable,
    find_architecture,
    known_names,
    make_convert_argv,
    require_architecture,
)
from hotstart.engines.errors import Reason, Terminal

PLAIN = ConvertOptions("/scratch/checkpoint", "/scratch/converted", "float16")
PLACES = "--model_dir /scratch/checkpoint --output_dir /scratch/converted"
ONE = "--tp_size 1 --pp_size 1 --workers 1"
GOLDEN = {
    "LlamaForCausalLM": f"/app/examples/models/core/llama/convert_checkpoint.py {PLACES} --dtype float16 {ONE}"
    " --load_model_on_cpu",
    "MistralForCausalLM": f"/app/examples/models/core/llama/convert_checkpoint.py {PLACES} --dtype float16 {ONE}"
    " --load_model_on_cpu",
    "Qwen2ForCausalLM": f"/app/examples/models/core/qwen/convert_checkpoint.py {PLACES} --dtype float16 {ONE}"
    " --load_model_on_cpu",
    "GemmaForCausalLM": f"/app/examples/models/core/gemma/convert_checkpoint.py {PLACES} --dtype float16"
    " --world-size 1 --ckpt-type hf --load_model_on_cpu",
    "Gemma2ForCausalLM": f"/app/examples/models/core/gemma/convert_checkpoint.py {PLACES} --dtype float16"
    " --world-size 1 --ckpt-type hf --load_model_on_cpu",
    "PhiForCausalLM": f"/app/examples/models/core/phi/convert_checkpoint.py {PLACES} --dtype float16 {ONE}",
    "Phi3ForCausalLM": f"/app/examples/models/core/phi/convert_checkpoint.py {PLACES} --dtype float16 {ONE}",
    "GPTBigCodeForCausalLM": f"/app/examples/models/core/gpt/convert_checkpoint.py {PLACES} --dtype float16 {ONE}"
    " --gpt_variant starcoder --load_model_on_cpu",
    "Starcoder2ForCausalLM": f"/app/examples/models/core/gpt/convert_checkpoint.py {PLACES} --dtype float16 {ONE}"
    " --gpt_variant starcoder2 --load_model_on_cpu",
    "GPTJForCausalLM": f"/app/examples/models/contrib/gptj/convert_checkpoint.py {PLACES} --dtype float16 {ONE}",
    "GPTNeoXForCausalLM": f"/app/examples/models/contrib/gptneox/convert_checkpoint.py {PLACES} --dtype float16 {ONE}",
    "FalconForCausalLM": f"/app/examples/models/contrib/falcon/convert_checkpoint.py {PLACES} --dtype float16 {ONE}",
    "BloomForCausalLM": f"/app/examples/models/contrib/bloom/convert_checkpoint.py {PLACES} --dtype float16 {ONE}",
}


def argv(name: str, options: ConvertOptions = PLAIN) -> str:
    return " ".join(make_convert_argv(require_architecture(name), options))


def test_each_upstream_network_has_its_exact_command() -> None:
    upstream = {a.name for a in ARCHITECTURES if a.converters[TENSORRT_LLM] not in OURS}
    assert upstream == GOLDEN.keys()
    assert {name: argv(name) for name in GOLDEN} == {name: f"python3 {command}" for name, command in GOLDEN.items()}


def test_quantization_and_parallelism_become_options() -> None:
    options = ConvertOptions("/m", "/o", "bfloat16", tensor_parallel=4, quantization="int4_weight_only")
    assert argv("Qwen2ForCausalLM", options).endswith(
        "--model_dir /m --output_dir /o --dtype bfloat16 --tp_size 4 --pp_size 1 --workers 1"
        " --use_weight_only --weight_only_precision int4 --load_model_on_cpu"
    )
    assert argv("Gemma2ForCausalLM", options).endswith(
        "--model_dir /m --output_dir /o --dtype bfloat16 --world-size 4"
        " --use_weight_only --weight_only_precision int4 --ckpt-type hf --load_model_on_cpu"
    )
    int8 = ConvertOptions("/m", "/o", "float16", quantization="int8_weight_only")
    assert argv("BloomForCausalLM", int8).endswith("--workers 1 --use_weight_only --weight_only_precision int8")


@pytest.mark.parametrize(("dtype", "quantization"), [("auto", "none"), ("float16", "fp8"), ("float16", "int8")])
def test_what_no_converter_takes_is_refused(dtype: str, quantization: str) -> None:
    with pytest.raises(Terminal, match=f"the recipe asks for {dtype} and {quantization}") as caught:
        argv("LlamaForCausalLM", ConvertOptions("/m", "/o", dtype, quantization=quantization))
    assert caught.value.reason is Reason.UNSUPPORTED_RECIPE


def test_our_own_converter_has_no_upstream_command() -> None:
    with pytest.raises(Terminal, match="MPTForCausalLM is not converted by a script"):
        argv("MPTForCausalLM")


def test_an_unknown_network_is_answered_with_all_that_are_known() -> None:
    assert find_architecture("T5ForConditionalGeneration") is None
    with pytest.raises(Terminal) as caught:
        require_architecture("T5ForConditionalGeneration")
    assert caught.value.reason is Reason.UNSUPPORTED_ARCHITECTURE
    assert all(name in caught.value.message for name in known_names())


def test_a_network_that_this_runtime_does_not_build_names_the_one_that_does() -> None:
    with pytest.raises(Terminal) as caught:
        check_buildable("FalconForCausalLM", "safetensors", CTRANSLATE2)
    assert caught.value.message == (
        "The runtime ctranslate2 does not build FalconForCausalLM; tensorrt_llm does: set engine.runtime. "
        "ctranslate2 builds MPTForCausalLM, MptForCausalLM, LlamaForCausalLM, MistralForCausalLM."
    )


def test_a_format_that_this_runtime_does_not_read_names_the_one_that_does() -> None:
    with pytest.raises(Terminal, match=r"of the format gguf: set engine\.runtime to ctranslate2, or use the original"):
        check_buildable("LlamaForCausalLM", "gguf", TENSORRT_LLM)
    with pytest.raises(Terminal, match=r"already converted for TensorRT-LLM.*set engine\.runtime to tensorrt_llm"):
        check_buildable("MPTForCausalLM", "tensorrt_llm", CTRANSLATE2)


@pytest.mark.parametrize("row", ARCHITECTURES, ids=lambda a: a.name)
def test_each_network_is_built_by_each_of_its_runtimes_from_each_of_its_formats(row: Architecture) -> None:
    assert row.runtimes
    for runtime in row.runtimes:
        for checkpoint_format in FORMATS[runtime]:
            check_buildable(row.name, checkpoint_format, runtime)
