"""See the package."""

from dataclasses import dataclass


@dataclass
class KvCacheConfig:
    """The settings that are given, and no others."""

    free_gpu_memory_fraction: float
    enable_block_reuse: bool
