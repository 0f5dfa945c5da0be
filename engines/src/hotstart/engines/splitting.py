"""How a network may be split over GPUs, and what sizes its quantized layers must have. Pure.

The operator refuses by it before anything is built, and our converter before it writes.
"""

from __future__ import annotations

#: TensorRT-LLM pads weight-only layers to multiples of this on each rank, in both directions; we do not pad.
WEIGHT_ONLY_MULTIPLE = 64


def find_split_refusal(heads: int, kv_heads: int, ranks: int) -> str:
    """Why the attention cannot be split over so many ranks, with what can be; empty where it can.

    Each rank has as many whole heads as any other, and where there are fewer key-value heads than ranks, each of them
    stands on as many ranks as any other.
    """
    few, many = sorted((kv_heads, ranks)) if ranks > 0 else (1, 1)
    if ranks >= 1 and heads % ranks == 0 and many % few == 0:
        return ""
    return (
        f"engine.tensorParallel is {ranks}; with {heads} attention heads and {kv_heads} key-value heads it can be a "
        "divisor of the first that divides the second or is a multiple of it."
    )


def find_weight_only_refusal(hidden: int, kv_heads: int, head_dim: int, ranks: int) -> str:
    """Why an MPT's layers cannot be quantized to int8 or int4 alone; empty where they can."""
    multiple = WEIGHT_ONLY_MULTIPLE * ranks
    rows = hidden + 2 * max(kv_heads, ranks) * head_dim
    if hidden % multiple == 0 and rows % multiple == 0:
        return ""
    return (
        f"Weight-only layers need sizes that are multiples of {WEIGHT_ONLY_MULTIPLE} on each rank, here are {hidden} "
        f"and {rows} on {ranks}: set engine.quantization to none."
    )
