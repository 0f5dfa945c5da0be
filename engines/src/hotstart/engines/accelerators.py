"""GPUs by the product name of their node label: streaming multiprocessor version, memory, MIG profiles. Pure.

The engine's key holds product, SM and memory, and the memory plan needs the bytes; both must be known before a node
with such a GPU is seen. Names are those of ``nvidia.com/gpu.product`` (GPU feature discovery: the driver's product
name, spaces as dashes; ``-MIG-1g.10gb`` and ``-SHARED`` appended where a node is partitioned or shared in time). Memory
is what the driver reports in MiB (``nvidia.com/gpu.memory``, ``nvidia-smi``) for boards with ECC as they are shipped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from hotstart.engines.recipe import Platform

MIB = 1024**2
GIB = 1024**3
SHARED = "-SHARED"
MIG = "-MIG-"
_MIG_PROFILE = re.compile(r"(\d+)g\.(\d+)gb(?:\+me)?")

#: A partition has at least this share of its slices of the GPU's memory. Reported (``nvidia-smi mig -lgip``): 4.75 of
#: 5.00 GiB for 1g.5gb of an A100, 9.62 of 9.96 for 1g.10gb of an H100, 16.00 of 17.55 for 1g.18gb of an H200.
LEAST_MIG_SHARE = 0.9
#: TensorRT-LLM 1.2 supports Ampere and later, FP8 from Ada on (support matrix: SM 80, 86, 89, 90, 100, 103, 120).
LEAST_SM = 80
LEAST_SM_OF_FP8 = 89
#: The driver that the container's CUDA 13.1 comes with; from CUDA_13_DRIVER on CUDA's minor version compatibility
#: applies, and from FORWARD_DRIVER on the container's package for forward compatibility, on boards of data centres.
CONTAINER_DRIVER = 590
CUDA_13_DRIVER = 580
FORWARD_DRIVER = 535
_NOT_OF_A_DATA_CENTRE = ("GeForce", "NVIDIA-RTX", "Quadro", "TITAN")


@dataclass(frozen=True)
class AcceleratorFacts:
    """One GPU, or one partition of it, as an engine sees it. ``memory`` in bytes, ``sm`` such as 90."""

    product: str
    sm: int
    memory: int
    mig_profile: str = ""
    cpu_architecture: str = "amd64"  # arm64 where the GPU comes on one module with a Grace CPU
    nominal: bool = True  # memory is of the table below, not of a node's label

    @property
    def key_sm(self) -> str:
        """The engine key's form, such as ``sm_90``."""
        return f"sm_{self.sm}"

    @property
    def key_memory(self) -> str:
        """The engine key's form: the MIG profile, else whole GiB.

        It is the table's where the product stands there, so that a driver that counts some MiB more rebuilds nothing.
        """
        board = _BOARDS.get(self.product)
        return self.mig_profile or f"{round((self.memory if board is None else board.mib * MIB) / GIB)}GiB"


@dataclass(frozen=True)
class _Board:
    sm: int
    mib: int
    slices: int = 0  # memory slices of MIG, 0: cannot be partitioned
    nominal_gb: int = 0  # what MIG profiles are named after
    cpu: str = "amd64"


_BOARDS: dict[str, _Board] = {
    "NVIDIA-A10": _Board(86, 23028),
    "NVIDIA-A10G": _Board(86, 23028),
    "NVIDIA-A30": _Board(80, 24576, 4, 24),
    "NVIDIA-A40": _Board(86, 46068),
    "NVIDIA-A100-SXM4-40GB": _Board(80, 40960, 8, 40),
    "NVIDIA-A100-PCIE-40GB": _Board(80, 40960, 8, 40),
    "NVIDIA-A100-SXM4-80GB": _Board(80, 81920, 8, 80),
    "NVIDIA-A100-80GB-PCIe": _Board(80, 81920, 8, 80),
    "NVIDIA-L4": _Board(89, 23034),
    "NVIDIA-L40": _Board(89, 46068),
    "NVIDIA-L40S": _Board(89, 46068),
    "NVIDIA-H20": _Board(90, 97871, 8, 96),
    "NVIDIA-H100-80GB-HBM3": _Board(90, 81559, 8, 80),
    "NVIDIA-H100-PCIe": _Board(90, 81559, 8, 80),
    "NVIDIA-H100-NVL": _Board(90, 95830, 8, 94),
    "NVIDIA-H200": _Board(90, 143771, 8, 141),
    "NVIDIA-H200-NVL": _Board(90, 143771, 8, 141),
    "NVIDIA-GH200-480GB": _Board(90, 97871, 8, 96, "arm64"),
    "NVIDIA-B200": _Board(100, 183359, 8, 180),
    "NVIDIA-GB200": _Board(100, 189471, 8, 186, "arm64"),
    "NVIDIA-RTX-A6000": _Board(86, 49140),
    "NVIDIA-RTX-6000-Ada-Generation": _Board(89, 49140),
    "NVIDIA-RTX-PRO-6000-Blackwell-Server-Edition": _Board(120, 97887, 4, 96),
    "NVIDIA-GeForce-RTX-3090": _Board(86, 24576),
    "NVIDIA-GeForce-RTX-4090": _Board(89, 24564),
    "NVIDIA-GeForce-RTX-5090": _Board(120, 32607),
    "Tesla-T4": _Board(75, 15360),
    "Tesla-V100-SXM2-16GB": _Board(70, 16384),
    "Tesla-V100-SXM2-32GB": _Board(70, 32768),
}
#: Compute and memory slices that can be cut, by the GPU's memory slices (MIG user guide, "Supported MIG profiles").
_PROFILES = {8: ((1, 1), (1, 2), (2, 2), (3, 4), (4, 4), (7, 8)), 4: ((1, 1), (2, 2), (4, 4))}


def known_products() -> tuple[str, ...]:
    """All products of the table, sorted."""
    return tuple(sorted(_BOARDS))


def known_mig_profiles(product: str) -> tuple[str, ...]:
    """The MIG profiles of a product, the smallest first; empty where it has none or is unknown."""
    board = _BOARDS.get(_split_label(product)[0])
    if board is None or not board.slices:
        return ()
    return tuple(f"{compute}g.{_profile_gb(board, memory)}gb" for compute, memory in _PROFILES[board.slices])


def find_accelerator(
    product: str,
    mig_profile: str | None = None,
    memory_label_mib: int | None = None,
    compute_label: str | None = None,
) -> AcceleratorFacts | None:
    """What is known of a GPU by its product name, and by a node's labels where one was seen.

    Args:
        product: value of ``nvidia.com/gpu.product``; a ``-MIG-...`` in it counts as ``mig_profile``.
        mig_profile: such as ``1g.10gb``; None or empty: the whole GPU.
        memory_label_mib: ``nvidia.com/gpu.memory`` of such a node (of the partition, for MIG), in MiB.
        compute_label: compute capability such as ``9.0`` (``nvidia.com/gpu.compute.major`` and ``.minor``).

    Returns:
        None where neither table nor labels say both SM and memory, and for a profile that the product does not have.
    """
    name, profile_of_label = _split_label(product)
    profile = (mig_profile or profile_of_label).removesuffix("+me")
    board = _BOARDS.get(name)
    if board is None:
        return _from_labels(name, profile, memory_label_mib, compute_label)
    if profile and profile not in known_mig_profiles(name):
        return None
    memory = _memory_of(board, profile) if memory_label_mib is None else memory_label_mib * MIB
    return AcceleratorFacts(name, board.sm, memory, profile, board.cpu, nominal=memory_label_mib is None)


def make_platform(accelerator: AcceleratorFacts) -> Platform:
    """The recipe's platform for engines of this GPU."""
    return Platform(
        cpu_architecture=accelerator.cpu_architecture,
        gpu_product=accelerator.product,
        gpu_sm=accelerator.key_sm,
        gpu_memory=accelerator.key_memory,
    )


def least_driver(product: str) -> int:
    """The oldest driver, by its first number, on which the container runs on boards of this product."""
    return CUDA_13_DRIVER if any(word in product for word in _NOT_OF_A_DATA_CENTRE) else FORWARD_DRIVER


def find_refusal(accelerator: AcceleratorFacts, quantization: str) -> str:
    """Why TensorRT-LLM cannot build for this GPU, in a sentence with its remedy; empty where it can."""
    if accelerator.sm < LEAST_SM:
        return (
            f"TensorRT-LLM needs a GPU of SM {LEAST_SM} or later, {accelerator.product} has SM {accelerator.sm}: "
            "choose another engine.accelerator.product."
        )
    if accelerator.sm in range(100, 120) and quantization in ("int8_weight_only", "int4_weight_only"):
        return (
            f"TensorRT-LLM has no int8 or int4 weights for SM 100 to 119, {accelerator.product} has SM "
            f"{accelerator.sm}: set engine.quantization to none or fp8, or choose another accelerator."
        )
    if quantization == "fp8" and accelerator.sm < LEAST_SM_OF_FP8:
        return (
            f"fp8 needs a GPU of SM {LEAST_SM_OF_FP8} or later, {accelerator.product} has SM {accelerator.sm}: "
            "set engine.quantization to int8_weight_only, or choose another accelerator."
        )
    return ""


def _split_label(product: str) -> tuple[str, str]:
    """Product and MIG profile of a label's value."""
    name, _, profile = product.removesuffix(SHARED).partition(MIG)
    return name, profile


def _from_labels(
    product: str, profile: str, memory_label_mib: int | None, compute_label: str | None
) -> AcceleratorFacts | None:
    found = re.fullmatch(r"(\d+)\.(\d)", compute_label or "")
    if found is None or memory_label_mib is None or memory_label_mib <= 0:
        return None
    sm = int(found[1]) * 10 + int(found[2])
    return AcceleratorFacts(product, sm, memory_label_mib * MIB, profile, nominal=False)


def _memory_of(board: _Board, profile: str) -> int:
    found = _MIG_PROFILE.fullmatch(profile)
    if found is None:
        return board.mib * MIB
    slices = next(memory for _, memory in _PROFILES[board.slices] if _profile_gb(board, memory) == int(found[2]))
    return int(board.mib * MIB * slices / board.slices * LEAST_MIG_SHARE)


def _profile_gb(board: _Board, slices: int) -> int:
    """The size in a profile's name: its share of the nominal memory, rounded to the nearest, halves up."""
    return (2 * board.nominal_gb * slices + board.slices) // (2 * board.slices)
