"""Which GPUs this container sees, and whether they are those that the recipe is for; asked before anything is built."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from dataclasses import dataclass

from hotstart.engines.accelerators import CONTAINER_DRIVER, least_driver
from hotstart.engines.errors import Reason, Retryable, Terminal
from hotstart.engines.recipe import EngineRecipe

#: One line for each GPU: ``NVIDIA H100 80GB HBM3, 9.0, 81559, 590.44.01``.
QUERY = ("nvidia-smi", "--query-gpu=name,compute_cap,memory.total,driver_version", "--format=csv,noheader,nounits")
#: GPUs and, below each, its partitions: ``  MIG 1g.10gb     Device  0: (UUID: MIG-...)``.
LIST = ("nvidia-smi", "-L")
SECONDS = 60.0  # the driver may have to wake the GPU first
_PARTITION = re.compile(r"^\s+MIG (\S+)\s+Device", re.MULTILINE)


@dataclass(frozen=True)
class VisibleGpu:
    """One GPU as the driver has it; ``product`` in the words of the node label."""

    product: str
    sm: int
    memory_mib: int
    driver: str


def parse_gpus(text: str) -> tuple[VisibleGpu, ...]:
    """The answer to ``QUERY``; lines that are none (warnings) are left out. Pure."""
    found = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.rsplit(",", 3)]
        if len(parts) == 4 and re.fullmatch(r"\d+\.\d", parts[1]):
            major, minor = parts[1].split(".")
            memory = int(parts[2]) if parts[2].isdigit() else 0
            found.append(VisibleGpu(parts[0].replace(" ", "-"), int(major) * 10 + int(minor), memory, parts[3]))
    return tuple(found)


def parse_partitions(text: str) -> tuple[str, ...]:
    """The MIG profiles in the answer to ``LIST``, one for each partition. Pure."""
    return tuple(_PARTITION.findall(text))


def find_mismatch(gpus: tuple[VisibleGpu, ...], partitions: tuple[str, ...], recipe: EngineRecipe) -> str:
    """Why these GPUs are not those of the recipe, with product and driver; empty where they are. Pure."""
    wanted, ranks = recipe.platform, recipe.tensor_parallel
    if not gpus:
        return "The container sees no GPU: the Job must ask for nvidia.com/gpu, and the node must have a driver."
    there = "; ".join(
        f"{count} {gpu.product} (SM {gpu.sm}, driver {gpu.driver})" for gpu, count in sorted(_count(gpus), key=str)
    )
    profile = _profile_of(recipe)
    if profile:
        fitting = sum(1 for partition in partitions if partition.removesuffix("+me") == profile)
        there += f", partitions {', '.join(partitions) or 'none'}"
    else:
        if partitions:
            return (
                f"The engine is for a whole {wanted.gpu_product}, the container sees {there} cut into {partitions[0]}."
            )
        fitting = len(gpus)
    others = [gpu for gpu in gpus if (gpu.product, f"sm_{gpu.sm}") != (wanted.gpu_product, wanted.gpu_sm)]
    if others or fitting < ranks:
        what = f"{ranks} {wanted.gpu_product} {profile}".rstrip()
        return f"The engine is for {what} ({wanted.gpu_sm}), the container sees {there}."
    driver, least = gpus[0].driver, least_driver(wanted.gpu_product)
    if driver.partition(".")[0].isdigit() and int(driver.partition(".")[0]) < least:
        return (
            f"The node's driver {driver} is too old for CUDA 13 on {wanted.gpu_product}: install {least} or later, "
            f"{CONTAINER_DRIVER} at best."
        )
    return ""


def check_gpus(recipe: EngineRecipe) -> None:
    """Asks the driver.

    Raises:
        EngineError: AcceleratorMismatch with what is there and what is asked for.
    """
    mismatch = find_mismatch(parse_gpus(_ask(QUERY)), parse_partitions(_ask(LIST)), recipe)
    if mismatch:
        raise Terminal(Reason.ACCELERATOR_MISMATCH, f"{mismatch} Change engine.accelerator, or the node.")


def _profile_of(recipe: EngineRecipe) -> str:
    """The MIG profile that the recipe is for; empty for a whole GPU, whose memory is in GiB."""
    return "" if recipe.platform.gpu_memory.endswith("GiB") else recipe.platform.gpu_memory


def _count(gpus: tuple[VisibleGpu, ...]) -> list[tuple[VisibleGpu, int]]:
    return list(Counter(gpus).items())


def _ask(argv: tuple[str, ...]) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise Retryable(
            Reason.ACCELERATOR_MISMATCH,
            f"The GPUs of this node cannot be asked ({type(error).__name__}: {error}): the container runtime must be "
            "NVIDIA's, and the Job must ask for nvidia.com/gpu.",
        ) from error
    if done.returncode != 0:
        said = " ".join((done.stdout + done.stderr).split())[:300]
        raise Retryable(
            Reason.ACCELERATOR_MISMATCH,
            f"nvidia-smi failed with exit {done.returncode} ({said}): mend the node's driver.",
        )
    return done.stdout
