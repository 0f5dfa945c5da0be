"""Where TensorRT's timing cache lies in the store: measurements of kernels, good for one toolchain and one GPU. Pure.

A cache of another TensorRT or GPU is refused by TensorRT or misleads it; one of another network is welcome: they
share kernels. It only saves time: a build without it is the same build, so nothing fails where it is missing or broken.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict

from hotstart.engines.key import canonical_json
from hotstart.engines.recipe import Platform, Toolchain

ROOT = "timing-caches/"
FORMAT = 1
NAME_LENGTH = 40
MOST_BYTES = 256 * 1024**2  # a larger one is not kept


def timing_cache_name(toolchain: Toolchain, platform: Platform) -> str:
    """The name for a GPU and the libraries that time kernels on it; converter and network are not in it. 40 hex."""
    timed_by = {
        "format": FORMAT,
        "runtime": toolchain.runtime,
        "runtimeVersion": toolchain.runtime_version,
        "libraries": dict(toolchain.libraries),
        "platform": asdict(platform),
    }
    return hashlib.sha256(canonical_json(timed_by).encode()).hexdigest()[:NAME_LENGTH]


def timing_cache_path(namespace_uid: str, toolchain: Toolchain, platform: Platform) -> str:
    """The object in the store: each namespace has its own, for a cache is read by code that runs on a GPU."""
    return f"{ROOT}{namespace_uid}/{timing_cache_name(toolchain, platform)}"


def has_timing_cache(toolchain: Toolchain) -> bool:
    """Whether engines of this runtime are compiled with one."""
    return toolchain.runtime == "tensorrt_llm"


#: Files in a build's work folder: the cache that the build begins with, and the one that it leaves.
TIMING_CACHE = "timing.cache"
NEW_TIMING_CACHE = "timing.cache.new"
