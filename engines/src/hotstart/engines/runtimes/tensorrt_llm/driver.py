"""The GPU's driver in a container that has no GPU: TensorRT-LLM's package may be loaded there all the same.

``import tensorrt_llm`` needs ``libcuda.so.1``, which the container runtime mounts beside a GPU. The container's package
for forward compatibility has one too: it finds no device, and a mere conversion needs none.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path

LIBRARY = "libcuda.so.1"
COMPAT = (Path("/usr/local/cuda/compat/lib"), Path("/usr/local/cuda/compat"))


def find_compat(folders: Sequence[Path] = COMPAT) -> Path | None:
    """The folder with a driver's library, where none is mounted; None where one is, or the container has none."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return next((folder for folder in folders if (folder / LIBRARY).exists()), None)
    return None


def make_driver_environment(compat: Path | None, ours: Mapping[str, str]) -> dict[str, str]:
    """Variables with which a tool finds that library. Pure."""
    if compat is None:
        return {}
    return {"LD_LIBRARY_PATH": ":".join(filter(None, (str(compat), ours.get("LD_LIBRARY_PATH", ""))))}


def load_compat(compat: Path | None) -> None:
    """Loads the library into this process, so that a package that is imported later finds it.

    Raises:
        OSError: it cannot be loaded.
    """
    if compat is not None:
        ctypes.CDLL(str(compat / LIBRARY), ctypes.RTLD_GLOBAL)
