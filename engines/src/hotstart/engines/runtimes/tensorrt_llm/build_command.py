"""From a recipe to the exact command lines of the tools in the container: argv, environment, the files to expect. Pure.

Options are those of ``trtllm-build`` 1.2.1. Each whose default would surprise is given, even where the default is right
today; a change of what is given here raises ``recipe.BUILD_OPTIONS_VERSION``, for the key does not see it otherwise.

- ``--max_seq_len``: an MPT config carries none, and the engine would end at 2048 tokens.
- ``--max_batch_size`` (2048), ``--max_input_len`` (1024), ``--max_num_tokens`` (8192): activations are sized by them.
- ``--opt_num_tokens``: a batch that generates, one token a request; kernels are chosen for it.
- ``--kv_cache_type``, ``--use_paged_context_fmha``, ``--remove_input_padding``: what in-flight batching and reuse need.
- ``--gemm_plugin``: off by default; cuBLASLt is faster in 16 bit, TensorRT's own kernels in fp8.
- ``--output_timing_cache``: otherwise ``model.cache`` in the working directory.
- ``--logits_dtype``: Triton's repository declares float32.
- Never given: ``--strip_plan`` (assumes the same weights), ``--fast_build``, ``--weight_streaming`` (slower engines).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hotstart.engines.errors import Reason, Terminal
from hotstart.engines.memory_plan import TOKENS_PER_BLOCK, max_num_tokens
from hotstart.engines.recipe import EngineRecipe
from hotstart.engines.toolchains import QUANTIZE

BUILD = "trtllm-build"
CONFIG = "config.json"
DTYPES = ("float16", "bfloat16")
#: quantization of a recipe -> quant_algo of a checkpoint
QUANT_ALGORITHMS = {"none": None, "int8_weight_only": "W8A16", "int4_weight_only": "W4A16", "fp8": "FP8"}
LOGITS_DTYPE = "float32"
CALIBRATION_SEQUENCES = 256  # of the calibration for fp8; short texts, each at most so many tokens:
CALIBRATION_TOKENS = 512
CALIBRATION_SEED = 1234


@dataclass(frozen=True)
class BuildPlaces:
    """Folders and files of one build. ``timing_cache_in`` is empty where there is none yet."""

    checkpoint: str
    output: str
    timing_cache_out: str
    timing_cache_in: str = ""


@dataclass(frozen=True)
class Command:
    """One run of a tool: ``environment`` is added to the process's own, ``files`` appear in its output folder."""

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()


def check_recipe(recipe: EngineRecipe) -> None:
    """Raises Terminal (UnsupportedRecipe) for what this runtime does not build."""
    if recipe.dtype not in DTYPES:
        raise _unsupported("dtype", recipe.dtype, DTYPES)
    if recipe.quantization not in QUANT_ALGORITHMS:
        raise _unsupported("quantization", recipe.quantization, tuple(QUANT_ALGORITHMS))


def make_build_command(recipe: EngineRecipe, places: BuildPlaces) -> Command:
    """The command that turns a TensorRT-LLM checkpoint into engines, one for each rank.

    Raises:
        Terminal: UnsupportedRecipe.
    """
    check_recipe(recipe)
    fp8 = recipe.quantization == "fp8"
    argv = [BUILD, "--checkpoint_dir", places.checkpoint, "--output_dir", places.output]
    argv += _limits(recipe)
    argv += ["--kv_cache_type", "paged", "--tokens_per_block", str(TOKENS_PER_BLOCK)]
    argv += ["--gpt_attention_plugin", recipe.dtype, "--gemm_plugin", "disable" if fp8 else recipe.dtype]
    argv += ["--nccl_plugin", recipe.dtype if recipe.tensor_parallel > 1 else "disable"]
    argv += ["--remove_input_padding", "enable", "--context_fmha", "enable", "--use_paged_context_fmha", "enable"]
    argv += ["--use_fp8_context_fmha", "enable" if fp8 else "disable"]
    argv += ["--multiple_profiles", "disable", "--reduce_fusion", "disable", "--logits_dtype", LOGITS_DTYPE]
    argv += ["--workers", str(recipe.tensor_parallel)]
    if places.timing_cache_in:
        argv += ["--input_timing_cache", places.timing_cache_in]
    argv += ["--output_timing_cache", places.timing_cache_out, "--monitor_memory", "--log_level", "info"]
    return Command(tuple(argv), TOOL_ENVIRONMENT, engine_files(recipe.tensor_parallel))


def make_quantize_command(recipe: EngineRecipe, model: str, output: str, texts: str) -> Command:
    """The command that calibrates a Hugging Face folder to fp8, weights and KV cache; needs the GPU.

    ``texts`` is a folder with ``train.jsonl``, a ``text`` in each line: the default would be fetched from the hub.
    """
    check_recipe(recipe)
    argv = ["python3", QUANTIZE, "--model_dir", model, "--output_dir", output, "--dtype", recipe.dtype]
    argv += ["--qformat", "fp8", "--kv_cache_dtype", "fp8", "--device", "cuda", "--device_map", "auto"]
    argv += ["--tp_size", str(recipe.tensor_parallel), "--pp_size", "1"]
    argv += ["--calib_dataset", texts, "--calib_size", str(CALIBRATION_SEQUENCES), "--batch_size", "1"]
    argv += ["--calib_max_seq_length", str(CALIBRATION_TOKENS), "--seed", str(CALIBRATION_SEED)]
    return Command(tuple(argv), TOOL_ENVIRONMENT, checkpoint_files(recipe.tensor_parallel))


def engine_files(ranks: int) -> tuple[str, ...]:
    """What ``trtllm-build`` leaves in its output folder."""
    return (CONFIG, *(f"rank{rank}.engine" for rank in range(ranks)))


def checkpoint_files(ranks: int) -> tuple[str, ...]:
    """What a TensorRT-LLM checkpoint consists of."""
    return (CONFIG, *(f"rank{rank}.safetensors" for rank in range(ranks)))


#: No tool asks a hub for anything, and each line is written when it is said.
TOOL_ENVIRONMENT: Mapping[str, str] = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "TRANSFORMERS_OFFLINE": "1"}


def _limits(recipe: EngineRecipe) -> list[str]:
    limits = recipe.limits
    most = max_num_tokens(limits)
    return [
        *("--max_batch_size", str(limits.batch_size)),
        *("--max_input_len", str(limits.input_tokens)),
        *("--max_seq_len", str(limits.sequence_tokens)),
        *("--max_num_tokens", str(most)),
        *("--opt_num_tokens", str(min(limits.batch_size, most))),
        *("--max_beam_width", "1"),
    ]


def _unsupported(name: str, value: str, known: tuple[str, ...]) -> Terminal:
    return Terminal(
        Reason.UNSUPPORTED_RECIPE,
        f"engine.{name} is {value}; with runtime tensorrt_llm it can be {', '.join(known)}.",
    )
