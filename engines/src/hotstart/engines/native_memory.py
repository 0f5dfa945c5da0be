"""What a process has freed goes back to the machine: after a start or a load it would keep it for ever."""

from __future__ import annotations

import ctypes
import gc


def give_back_memory() -> None:
    """Collects garbage and lets the C library return freed pages; of what a load took for a moment nothing stays."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc
        trim(0)
