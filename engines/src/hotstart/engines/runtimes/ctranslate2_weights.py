"""How weights get into a CTranslate2 specification: one tensor at a time, quantized on the way.

So the peak of memory is the engine's size and one float32 tensor, not the whole checkpoint in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from hotstart.engines.checkpoints.checkpoint import Array, Checkpoint, expected_shapes, read_weight
from hotstart.engines.runtimes.runtime import Progress


def quantize_rows(value: Array, block: int = 4096) -> tuple[npt.NDArray[np.int8], Array]:
    """CTranslate2's int8: one scale for each row, 127 over its largest magnitude (docs/quantization.md). Pure.

    Works on ``block`` rows at a time, so that an embedding needs no second float32 copy.
    """
    rows = np.empty(value.shape, dtype=np.int8)
    scales = np.empty(len(value), dtype=np.float32)
    for start in range(0, len(value), block):
        part = value[start : start + block]
        largest = np.abs(part).max(axis=1)
        largest[largest == 0] = 127.0
        largest = np.maximum(largest, np.float32(127) / np.finfo(np.float32).max)  # the scale itself must be finite
        scales[start : start + block] = np.float32(127.0) / largest
        rows[start : start + block] = np.rint(part * scales[start : start + block, None])
    return rows, scales


class WeightWriter:
    """Fills layers of a specification with tensors of a checkpoint, and reports progress by weights."""

    def __init__(self, checkpoint: Checkpoint, quantize: bool, progress: Progress) -> None:
        self._checkpoint = checkpoint
        self._quantize = quantize
        self._progress = progress
        self._shapes = expected_shapes(checkpoint.facts)
        self._total = sum(int(np.prod(shape)) for shape in self._shapes.values())
        self._done = 0
        self._quantized: list[Any] = []

    def linear(self, spec: Any, *names: str) -> None:
        """One linear layer (or embedding) of the rows of ``names``, one below the other, with their biases."""
        weight = self.read(names[0]) if len(names) == 1 else np.concatenate([self.read(name) for name in names])
        if self._quantize:
            spec.weight, spec.weight_scale = quantize_rows(weight)
            self._quantized.append(spec)
        else:
            spec.weight = weight
        biases = [name.removesuffix("weight") + "bias" for name in names]
        if biases[0] in self._shapes:
            spec.bias = np.concatenate([self.read(name) for name in biases])

    def alias_duplicates(self, spec: Any) -> None:
        """Stores equal tensors of a validated ``spec`` once: tied embeddings, layers that are copies of one another.

        CTranslate2 looks at each tensor by itself. Where a scale equals another layer's and the weight does not, or the
        other way round, its runtime then misses one of them as it loads; such layers keep what is theirs.
        """
        own = [(layer, layer.weight, layer.weight_scale) for layer in self._quantized]
        spec.optimize(quantization=None)
        for layer, weight, scale in own:
            if _owner(layer.weight) != _owner(layer.weight_scale):
                layer.weight, layer.weight_scale = weight, scale

    def read(self, name: str) -> Array:
        """One tensor as it is.

        Raises:
            Terminal: CheckpointCorrupt, it holds NaN or Inf.
        """
        value = read_weight(self._checkpoint, name)
        self._done += value.size
        self._progress(self._done / self._total)
        return value


def _owner(tensor: Any) -> str | None:
    """The layer that an alias (a name) points into; None for a tensor."""
    return tensor.rpartition("/")[0] if isinstance(tensor, str) else None


def tie_projection(decoder: Any) -> None:
    """Logits come from the embedding; ``optimize`` makes an alias of it, so that it is stored once."""
    decoder.projection.weight = decoder.embeddings.weight
    decoder.projection.weight_scale = decoder.embeddings.weight_scale
