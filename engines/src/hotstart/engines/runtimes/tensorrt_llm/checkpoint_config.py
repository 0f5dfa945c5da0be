"""config.json of a TensorRT-LLM checkpoint of an MPT network, and what that network cannot be there. Pure.

Fields, in upstream's order, are those that TensorRT-LLM 1.2.1's own MPT converter writes. Its MPT model fixes three
things in code: the MLP is four times as wide as the network, the last norm's epsilon is 1e-5, and positions are ALiBi.
"""

from __future__ import annotations

from typing import Any

from hotstart.engines.architectures import WEIGHT_ONLY
from hotstart.engines.checkpoints.mpt_config import MptFacts
from hotstart.engines.errors import Reason, Terminal
from hotstart.engines.recipe import EngineRecipe
from hotstart.engines.runtimes.tensorrt_llm.build_command import DTYPES, LOGITS_DTYPE, QUANT_ALGORITHMS
from hotstart.engines.splitting import find_split_refusal, find_weight_only_refusal

#: Of the quantizations of a recipe; fp8 is calibrated, which upstream does and not for this network.
QUANTIZATIONS = ("none", *WEIGHT_ONLY)
EXPANSION = 4
NORM_EPSILON = 1e-5


def make_checkpoint_config(facts: MptFacts, recipe: EngineRecipe) -> dict[str, Any]:
    """config.json as a dictionary; ``check_mpt_recipe`` must have passed."""
    ranks = recipe.tensor_parallel
    return {
        "architecture": "MPTForCausalLM",
        "dtype": recipe.dtype,
        "logits_dtype": LOGITS_DTYPE,
        "vocab_size": facts.vocab,
        "hidden_size": facts.hidden,
        "intermediate_size": facts.intermediate,
        "num_hidden_layers": facts.layers,
        "num_attention_heads": facts.heads,
        "num_key_value_heads": facts.kv_heads,
        "position_embedding_type": "alibi",
        "hidden_act": "gelu",
        "use_parallel_embedding": False,
        "embedding_sharding_dim": 0,
        "quantization": {"quant_algo": QUANT_ALGORITHMS[recipe.quantization], "kv_cache_quant_algo": None},
        "mapping": {"world_size": ranks, "tp_size": ranks, "pp_size": 1},
        "bias": facts.bias,
        "clip_qkv": facts.clip_qkv,
        "alibi_bias_max": _whole_if_whole(facts.alibi_bias_max),
    }


def check_mpt_network(facts: MptFacts) -> None:
    """Raises Terminal (UnsupportedArchitecture) for what TensorRT-LLM's MPT cannot be, whatever the recipe."""
    if facts.intermediate != EXPANSION * facts.hidden:
        raise Terminal(
            Reason.UNSUPPORTED_ARCHITECTURE,
            f"The MLP is {facts.intermediate} wide, TensorRT-LLM's MPT has {EXPANSION} times d_model ({facts.hidden}).",
        )
    if facts.norm_epsilon != NORM_EPSILON:
        raise Terminal(
            Reason.UNSUPPORTED_ARCHITECTURE,
            f"The norms' epsilon is {facts.norm_epsilon:g}, TensorRT-LLM's MPT has {NORM_EPSILON:g}.",
        )


def check_mpt_recipe(facts: MptFacts, recipe: EngineRecipe) -> None:
    """Whether this network can be converted as the recipe asks.

    Raises:
        Terminal: UnsupportedArchitecture or UnsupportedRecipe, naming the field and what is possible.
    """
    check_mpt_network(facts)
    if recipe.dtype not in DTYPES:
        raise _unsupported("dtype", recipe.dtype, ", ".join(DTYPES))
    if recipe.quantization not in QUANTIZATIONS:
        raise _unsupported("quantization", recipe.quantization, ", ".join(QUANTIZATIONS))
    refusal = find_split_refusal(facts.heads, facts.kv_heads, recipe.tensor_parallel)
    if not refusal and recipe.quantization in WEIGHT_ONLY:
        refusal = find_weight_only_refusal(facts.hidden, facts.kv_heads, facts.head_dim, recipe.tensor_parallel)
    if refusal:
        raise Terminal(Reason.UNSUPPORTED_RECIPE, refusal)


def _unsupported(field: str, value: str, known: str) -> Terminal:
    return Terminal(
        Reason.UNSUPPORTED_RECIPE, f"engine.{field} is {value}; for MPT with tensorrt_llm it can be {known}."
    )


def _whole_if_whole(value: float) -> int | float:
    return int(value) if value == int(value) else value
