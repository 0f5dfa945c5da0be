"""A stand-in for ``torch.ops.trtllm.symmetric_quantize_last_axis_of_batched_matrix``, which needs TensorRT-LLM.

It rounds symmetrically with one scale for each output (the largest magnitude / 127, or / 7; the real one may divide by
another number), and returns the shapes and types of the real one, but leaves the bytes in plain order where that one
interleaves them for its kernels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hotstart.engines.runtimes.tensorrt_llm.quantize import BITS, Quantize
from hotstart.engines.runtimes.tensorrt_llm.sixteen_bits import STORED, to_bits, to_float32


def make_stand_in(quantization: str) -> Quantize:
    """A ``Quantize`` for ``int8_weight_only`` or ``int4_weight_only``."""
    largest = 127 if BITS[quantization] == 8 else 7

    def quantize(weight: npt.NDArray[np.uint16], dtype: str) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.uint16]]:
        stored = STORED[dtype]
        values = to_float32(weight if stored == "BF16" else weight.view(np.float16), stored)
        scales = to_bits(np.abs(values).max(axis=0) / np.float32(largest), "F32", stored)
        used = to_float32(scales if stored == "BF16" else scales.view(np.float16), stored)
        rounded = np.clip(np.rint(values / used), -largest, largest).astype(np.int8)
        if largest == 7:
            rounded = ((rounded[:, 1::2] << 4) | (rounded[:, ::2] & 0x0F)).astype(np.int8)
        return rounded, scales

    return quantize
