"""Which toolchain makes an engine of a network: the part of the recipe that inspection decides. Pure.

The operator puts it into the recipe, and with it into the key; the builder refuses any other.
"""

from __future__ import annotations

from hotstart.engines.architectures import OURS, TENSORRT_LLM, check_buildable, require_architecture
from hotstart.engines.errors import Reason, Terminal
from hotstart.engines.recipe import Toolchain, make_toolchain

#: TensorRT-LLM's script that quantizes to fp8: it calibrates with the network itself and needs a GPU.
QUANTIZE = "/app/examples/quantization/quantize.py"
#: A TensorRT-LLM checkpoint is built as it is; its architecture is the name of a class of TensorRT-LLM.
AS_IT_IS = "none"


def find_toolchain(
    runtime: str, architecture: str, *, checkpoint_format: str = "safetensors", quantization: str = "none"
) -> Toolchain:
    """The toolchain for a network by its name in ``config.json``; ``quantization`` as in the recipe.

    Raises:
        Terminal: UnsupportedArchitecture or UnsupportedRecipe, with what is possible.
    """
    check_buildable(architecture, checkpoint_format, runtime)
    if checkpoint_format == TENSORRT_LLM:
        return make_toolchain(runtime, AS_IT_IS)
    converter = require_architecture(architecture).converters[runtime]
    if runtime == TENSORRT_LLM and quantization == "fp8":
        if converter in OURS:
            raise Terminal(
                Reason.UNSUPPORTED_RECIPE,
                f"{architecture} cannot be quantized to fp8 (TensorRT-LLM's calibration does not load it): set "
                "engine.quantization to none, int8_weight_only or int4_weight_only.",
            )
        converter = QUANTIZE
    return make_toolchain(runtime, converter)
