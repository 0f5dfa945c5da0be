"""Which TensorRT-LLM and TensorRT this image has; neither is imported, so that no GPU and no minute is needed."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib import metadata

from hotstart.engines.errors import Reason, Terminal

RUNTIME_PACKAGES = ("tensorrt_llm",)
#: The wheel's name has changed with the versions of CUDA that it is for.
TENSORRT_PACKAGES = ("tensorrt", "tensorrt_cu13", "tensorrt-cu13", "tensorrt_cu13_libs")
_NUMBERS = re.compile(r"\d+(?:\.\d+)*")


def runtime_version(find: Callable[[str], str] = metadata.version) -> str:
    """Version of TensorRT-LLM, such as 1.2.1. Raises Terminal (ToolchainMismatch) where there is none."""
    return _first("TensorRT-LLM", RUNTIME_PACKAGES, find)


def tensorrt_version(find: Callable[[str], str] = metadata.version) -> str:
    """Version of TensorRT, such as 10.14.1.48. Raises Terminal (ToolchainMismatch) where there is none."""
    return _first("TensorRT", TENSORRT_PACKAGES, find)


def _first(what: str, packages: Sequence[str], find: Callable[[str], str]) -> str:
    for package in packages:
        try:
            version = find(package)
        except metadata.PackageNotFoundError:
            continue
        numbers = _NUMBERS.match(version)
        return numbers.group() if numbers else version  # without .post1, +cu131 and the like
    raise Terminal(
        Reason.TOOLCHAIN_MISMATCH,
        f"This image has no {what}: engines of TensorRT-LLM are built by the chart's image.builderTrtllm.",
    )
