"""Engines of number formats that no CPU runtime has, emulated in numpy: the checkpoint's own network, rounded.

Weights are rounded as they are stored, and so are input and output of each linear layer; fp8 scales both by their
largest value. The sums themselves, norms and attention stay in float32, as they do in TensorRT-LLM's kernels or nearly
so; the residual stream stays in float32, where an engine has it in its own format. Implements ``ScorerFactory``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from hotstart.engines.checkpoints.checkpoint import Array, Checkpoint, llama_facts, read_weight
from hotstart.engines.checkpoints.mpt_config import MptFacts
from hotstart.engines.recipe import EngineRecipe
from hotstart.engines.reference.llama import LlamaReference
from hotstart.engines.reference.mpt import MptReference
from hotstart.engines.reference.network import Reference
from hotstart.engines.runtimes.tensorrt_llm.sixteen_bits import to_bits, to_float32

Round = Callable[[Array], Array]
FP8_LARGEST, FP8_MANTISSA, FP8_SMALLEST = 448.0, 3, -6  # e4m3: bits of the mantissa, exponent of the smallest normal
#: Parts of names of what TensorRT-LLM never quantizes: embeddings, the projection to the vocabulary.
NEVER_QUANTIZED = ("embed_tokens", "wte", "lm_head")


def to_float16(x: Array) -> Array:
    return x.astype(np.float16).astype(np.float32)


def to_bfloat16(x: Array) -> Array:
    return to_float32(to_bits(x, "F32", "BF16"), "BF16")


def to_integers(bits: int, x: Array) -> Array:
    """Symmetric, with one scale for each row."""
    largest = 2 ** (bits - 1) - 1
    scale = np.maximum(np.abs(x).max(axis=-1, keepdims=True), np.float32(1e-30)) / np.float32(largest)
    rounded: Array = np.rint(x / scale) * scale
    return rounded


def to_fp8(x: Array) -> Array:
    """e4m3 with one scale for all."""
    scale = np.float32(max(float(np.abs(x).max()), 1e-30) / FP8_LARGEST)
    scaled = x / scale
    _, exponent = np.frexp(scaled)
    step = np.ldexp(np.float32(1), np.maximum(exponent - 1, FP8_SMALLEST) - FP8_MANTISSA)
    rounded: Array = np.rint(scaled / step) * step * scale
    return rounded


DTYPES: dict[str, Round] = {"float32": lambda x: x, "float16": to_float16, "bfloat16": to_bfloat16}
#: What is done to a linear layer's weights, and to what it is given.
QUANTIZATIONS: dict[str, tuple[Round, Round]] = {
    "none": (lambda x: x, lambda x: x),
    "int8_weight_only": (partial(to_integers, 8), lambda x: x),
    "int4_weight_only": (partial(to_integers, 4), lambda x: x),
    "fp8": (to_fp8, to_fp8),
}


class RoundedWeight(np.ndarray):
    """A weight that rounds what is multiplied with it, and the product."""

    given: Round
    product: Round

    def __array_finalize__(self, other: Any) -> None:
        self.given, self.product = getattr(other, "given", _same), getattr(other, "product", _same)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        plain = [np.asarray(value) if isinstance(value, np.ndarray) else value for value in inputs]
        if ufunc is not np.matmul:
            return getattr(ufunc, method)(*plain, **options)
        left, right = plain
        return self.product(np.matmul(self.given(self.product(left)), right))


def _same(x: Array) -> Array:
    return x


def make_weight(checkpoint: Checkpoint, recipe: EngineRecipe, name: str) -> Array:
    """The checkpoint's weight as an engine of this recipe has it."""
    rounded, (stored, given) = DTYPES[recipe.dtype], QUANTIZATIONS[recipe.quantization]
    value = read_weight(checkpoint, name)
    if value.ndim != 2:
        return rounded(value)
    if any(part in name for part in NEVER_QUANTIZED):
        stored, given = _same, _same
    made = stored(rounded(value)).view(RoundedWeight)
    made.given, made.product = given, rounded
    return made


class EmulatedScorer:
    """Implements ``Scorer``."""

    def __init__(self, network: Reference) -> None:
        self._network = network

    def top_tokens(self, ids: Sequence[int], positions: Sequence[int]) -> tuple[int, ...]:
        return tuple(int(token) for token in self._network.logits(ids, positions).argmax(axis=-1))

    def next_token(self, ids: Sequence[int]) -> int | None:
        return self.top_tokens(ids, (len(ids) - 1,))[0]


class Emulated:
    """Opens an emulation of ``checkpoint``, whatever folder it is given."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def open_scorer(self, folder: Path, recipe: EngineRecipe) -> EmulatedScorer:
        facts, weight = self._checkpoint.facts, cache(partial(make_weight, self._checkpoint, recipe))
        if isinstance(facts, MptFacts):
            return EmulatedScorer(MptReference(facts, weight))
        return EmulatedScorer(LlamaReference(llama_facts(self._checkpoint), weight))
