"""The config.json that ``trtllm-build`` writes beside its engines, held against the recipe. Pure.

The tool changes some options by itself, with no more than a warning in its log: an engine that was built otherwise than
asked for must not be served under a key that says otherwise. What it must hold: ``version``, ``pretrained_config``
(``mapping.tp_size``, types, ``quantization.quant_algo``) and ``build_config`` (limits, ``plugin_config``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hotstart.engines.memory_plan import TOKENS_PER_BLOCK, max_num_tokens
from hotstart.engines.recipe import EngineRecipe
from hotstart.engines.runtimes.tensorrt_llm.build_command import LOGITS_DTYPE, QUANT_ALGORITHMS

ABSENT = "absent"


def find_differences(config: Any, recipe: EngineRecipe) -> tuple[str, ...]:
    """What in the built engine's config is not as the recipe asks, as ``build_config.max_seq_len: 2048, not 4096``."""
    found = []
    for path, wanted in _wanted(recipe).items():
        value = _look_up(config, path)
        if _plain(value) != _plain(wanted) and not (value is ABSENT and wanted is None):
            found.append(f"{path}: {value}, not {wanted}")
    return tuple(found)


def _wanted(recipe: EngineRecipe) -> Mapping[str, Any]:
    limits = recipe.limits
    return {
        "version": recipe.toolchain.runtime_version,
        "pretrained_config.dtype": recipe.dtype,
        "pretrained_config.logits_dtype": LOGITS_DTYPE,
        "pretrained_config.quantization.quant_algo": QUANT_ALGORITHMS.get(recipe.quantization),
        "pretrained_config.mapping.tp_size": recipe.tensor_parallel,
        "build_config.max_batch_size": limits.batch_size,
        "build_config.max_seq_len": limits.sequence_tokens,
        "build_config.max_num_tokens": max_num_tokens(limits),
        "build_config.max_beam_width": 1,
        "build_config.kv_cache_type": "PAGED",
        "build_config.plugin_config.tokens_per_block": TOKENS_PER_BLOCK,
        "build_config.plugin_config.remove_input_padding": True,
        "build_config.plugin_config.context_fmha": True,
        "build_config.plugin_config.use_paged_context_fmha": True,
        "build_config.plugin_config.gemm_plugin": None if recipe.quantization == "fp8" else recipe.dtype,
    }


def _look_up(config: Any, path: str) -> Any:
    for name in path.split("."):
        if not isinstance(config, Mapping) or name not in config:
            return ABSENT
        config = config[name]
    return config


def _plain(value: Any) -> Any:
    """Enums come as ``PAGED`` or ``KVCacheType.PAGED``, in either case."""
    return value.rpartition("KVCacheType.")[2].upper() if isinstance(value, str) else value
