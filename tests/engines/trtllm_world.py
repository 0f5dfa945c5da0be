"""A machine with TensorRT-LLM's tools, all of them played: programs on PATH, packages, GPUs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

TOOLS = Path(__file__).parent.parent / "support" / "trtllm"
H100 = "NVIDIA H100 80GB HBM3, 9.0, 81559, 590.44.01"


def make_world(**more: str) -> dict[str, str]:
    """Environment variables; ``more`` without the prefix: TRTLLM, UPSTREAM, LLM, CHECKPOINT, GPUS."""
    path = f"{TOOLS}{os.pathsep}{os.environ['PATH']}"
    packages = f"{TOOLS / 'packages'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
    faked = {f"OMPI_FAKE_{name.upper()}": value for name, value in ({"gpus": H100} | more).items()}
    return {"PATH": path, "PYTHONPATH": packages, "OMPI_PYTHON": sys.executable, **faked}
