"""Weights in 16 bits: float16 and bfloat16 as ``uint16`` patterns, rounded to the nearest, ties to even. Pure.

numpy has no bfloat16: it is the upper half of a float32. From one 16-bit type to the other there are 65,536 values, so
a table made once converts several times faster than arithmetic.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.uint16]

#: dtype of a recipe -> dtype of a safetensors header.
STORED = {"float16": "F16", "bfloat16": "BF16"}
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def to_bits(values: npt.NDArray[Any], stored: str, wanted: str) -> Bits:
    """``values`` of the type ``stored`` (F64, F32, F16, or BF16 as patterns) as patterns of ``wanted`` (F16 or BF16).

    What is beyond the type's range becomes infinite: ``all_finite`` tells. float64 reaches bfloat16 by way of float32,
    so that a value next to a tie may be rounded twice.
    """
    if stored == wanted:
        return np.ascontiguousarray(values).view(np.uint16)
    if _BYTES[stored] == 2:
        patterns = np.ascontiguousarray(values).view(np.uint16)
        return _table(stored, wanted).take(patterns, mode="clip")
    return _round(values, wanted)


def to_float32(values: npt.NDArray[Any], stored: str) -> npt.NDArray[np.float32]:
    """``values`` of the type ``stored`` (BF16 as patterns) as float32; exact but for F64."""
    if stored == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def _round(values: npt.NDArray[Any], wanted: str) -> Bits:
    with np.errstate(over="ignore"):
        if wanted == "F16":
            return values.astype(np.float16).view(np.uint16)
        single = np.ascontiguousarray(values, dtype=np.float32)
    patterns = single.view(np.uint32)
    rounded: Bits = ((patterns + (np.uint32(0x7FFF) + ((patterns >> 16) & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(single), np.uint16(0x7FC0), rounded)


@cache
def _table(stored: str, wanted: str) -> Bits:
    every = np.arange(1 << 16, dtype=np.uint16)
    return _round(to_float32(every if stored == "BF16" else every.view(np.float16), stored), wanted)
