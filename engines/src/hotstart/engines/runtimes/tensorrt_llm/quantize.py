"""Weight-only int8 and int4: by TensorRT-LLM's own operation, which lays weights out as its kernels read them.

The operation runs on the CPU but comes with the tensorrt_llm package, which only the TensorRT-LLM builder image has.
It takes a weight [in, out] in float16 or bfloat16 and returns bytes [in, out * bits / 8] and one scale for each output
in the weight's type (cpp/tensorrt_llm/thop/weightOnlyQuantOp.cpp). Embedding, lm_head, norms and biases are not
quantized.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
from hotstart.engines.checkpoints.checkpoint import Shape
from hotstart.engines.errors import DriverMissing, EngineError, Reason, Terminal
from hotstart.engines.runtimes.tensorrt_llm.driver import find_compat, load_compat
from hotstart.engines.runtimes.tensorrt_llm.failures import lacks_driver
from hotstart.engines.runtimes.tensorrt_llm.safetensors_writer import Entry
from hotstart.engines.runtimes.tensorrt_llm.sixteen_bits import STORED, Bits

Bytes = npt.NDArray[np.int8]
#: Patterns [in, out] of a recipe's dtype -> bytes [in, out * bits / 8] and scales [out] as patterns.
Quantize = Callable[[Bits, str], tuple[Bytes, Bits]]

BITS = {"int8_weight_only": 8, "int4_weight_only": 4}


def load_quantize(quantization: str) -> Quantize | None:
    """The operation for a recipe's ``quantization``; None where weights stay as they are.

    Raises:
        DriverMissing: the package cannot be loaded without a GPU's driver.
        Terminal: UnsupportedRecipe, tensorrt_llm is not installed here; ToolchainMismatch, it cannot be loaded.
    """
    if quantization not in BITS:
        return None
    try:
        torch = import_module("torch")
        load_compat(find_compat())
        import_module("tensorrt_llm")  # registers torch.ops.trtllm
        return make_quantize(torch, quantization)
    except Exception as error:
        raise _make_failure(quantization, error) from error


def _make_failure(quantization: str, error: Exception) -> EngineError:
    """Packages raise what they like while they are imported, by way of the libraries of CUDA."""
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, ModuleNotFoundError):
        return Terminal(
            Reason.UNSUPPORTED_RECIPE,
            f"engine.quantization {quantization} is done by TensorRT-LLM itself, which only the TensorRT-LLM builder "
            f"image has ({error}): convert in that image, or set quantization: none.",
        )
    if lacks_driver(said):
        return DriverMissing(
            f"engine.quantization {quantization} needs TensorRT-LLM, and that a GPU's driver ({said})."
        )
    return Terminal(
        Reason.TOOLCHAIN_MISMATCH,
        f"TensorRT-LLM, which does engine.quantization {quantization}, cannot be loaded ({said}): the builder image "
        "must be that of the release.",
    )


def make_quantize(torch: Any, quantization: str) -> Quantize:
    """``Quantize`` by the operation of this ``torch``, into which tensorrt_llm has registered it.

    Raises:
        AttributeError: it has not.
    """
    kind = {8: torch.int8, 4: torch.quint4x2}[BITS[quantization]]
    operation = torch.ops.trtllm.symmetric_quantize_last_axis_of_batched_matrix

    def quantize(weight: Bits, dtype: str) -> tuple[Bytes, Bits]:
        tensor = torch.from_numpy(weight.view(np.int16)).view(getattr(torch, dtype))
        try:
            packed, scales = operation(tensor, kind)
        except RuntimeError as error:
            raise Terminal(
                Reason.UNSUPPORTED_RECIPE,
                f"TensorRT-LLM does not quantize a weight of {list(weight.shape)} to {quantization} ({error}): set "
                "quantization: none.",
            ) from error
        return packed.numpy(), scales.view(torch.int16).numpy().view(np.uint16)

    return quantize


def quantized_entries(name: str, shape: Shape, dtype: str, quantization: str) -> tuple[Entry, Entry]:
    """What stands in the file for the linear weight ``name`` of ``shape`` [out, in]. Pure."""
    outputs, inputs = shape
    packed = Entry(name, "I8", (inputs, outputs * BITS[quantization] // 8))
    return packed, Entry(scale_name(name), STORED[dtype], (outputs,))


def scale_name(weight: str) -> str:
    """Where the scales of a weight stand: beside it."""
    return weight.removesuffix("weight") + "per_channel_scale"
