"""Disk and memory of a build: how many bytes it will write, and what to say when there are none left."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hotstart.engines.architectures import CTRANSLATE2
from hotstart.engines.build_estimate import make_build_estimate
from hotstart.engines.checkpoints.checkpoint import Facts, count_embedding_parameters, count_parameters
from hotstart.engines.checkpoints.source import make_disk_full
from hotstart.engines.errors import HostMemoryFull
from hotstart.engines.memory_plan import NetworkSizes
from hotstart.engines.recipe import EngineRecipe

OVERHEAD = 1.05  # vocabulary, tokenizer and scales beside the weights


def network_sizes(facts: Facts) -> NetworkSizes:
    """The sizes that memory plan and estimate take."""
    counts = {"parameters": count_parameters(facts), "embeddingParameters": count_embedding_parameters(facts)}
    return NetworkSizes.from_facts(facts.to_json() | counts)


def needed_bytes(recipe: EngineRecipe, facts: Facts) -> int:
    """Bytes that conversion and build write beside the checkpoint. Pure."""
    if recipe.toolchain.runtime == CTRANSLATE2:
        return int(count_parameters(facts) * (4 if recipe.quantization == "float32" else 1) * OVERHEAD)
    return int(make_build_estimate(network_sizes(facts), recipe).scratch * OVERHEAD)


@contextmanager
def full_disk_errors(folder: Path, needed: int) -> Iterator[None]:
    """Turns a full disk into DiskFull with the sizes, and memory that ran out in this process into OutOfMemory."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise make_disk_full(folder, needed) from error
        raise
    except MemoryError as error:
        raise HostMemoryFull(
            f"The builder ran out of memory ({error}): give the builder more memory, or build on a node that has more."
        ) from error
