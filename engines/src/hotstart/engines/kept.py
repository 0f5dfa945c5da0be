"""What builds leave in the store for later ones of their namespace. Pure.

It only saves time: a build without it is the same build, so nothing fails where it is missing or broken.

- **Timing caches**: TensorRT's measurements of kernels, good for one toolchain and one GPU. A cache of another TensorRT
  or GPU is refused by TensorRT or misleads it; one of another network is welcome: they share kernels.
- **Expectations**: what a checkpoint answers where engines are held against it, named by all that they depend on.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict

from hotstart.engines.key import canonical_json
from hotstart.engines.recipe import Platform, Toolchain

TIMING_FORMAT = 1
NAME_LENGTH = 40

#: Files in a build's work folder: the cache that the build begins with, and the one that it leaves.
TIMING_CACHE = "timing.cache"
NEW_TIMING_CACHE = "timing.cache.new"


def kept_path(namespace_uid: str, what: str, name: str) -> str:
    """The object in the store; ``what`` is one of ``exchange.names.Kept``.

    Each namespace has its own, for builds and GPUs of one must not trust another's.
    """
    return f"{what}/{namespace_uid}/{name}"


def has_timing_cache(toolchain: Toolchain) -> bool:
    """Whether engines of this runtime are compiled with one."""
    return toolchain.runtime == "tensorrt_llm"


def timing_cache_name(toolchain: Toolchain, platform: Platform) -> str:
    """The name for a GPU and the libraries that time kernels on it; converter and network are not in it. 40 hex."""
    timed_by = {
        "format": TIMING_FORMAT,
        "runtime": toolchain.runtime,
        "runtimeVersion": toolchain.runtime_version,
        "libraries": dict(toolchain.libraries),
        "platform": asdict(platform),
    }
    return hashlib.sha256(canonical_json(timed_by).encode()).hexdigest()[:NAME_LENGTH]
