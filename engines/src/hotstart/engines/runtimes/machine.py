"""What machine this is, and whether a recipe's engines are for it."""

from __future__ import annotations

import platform

from hotstart.engines.errors import Reason, Terminal
from hotstart.engines.recipe import EngineRecipe

#: Names of the kernel -> names of Kubernetes and of images.
CPU_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def cpu_architecture() -> str:
    """This machine's, in the words of the node label kubernetes.io/arch."""
    machine = platform.machine()
    return CPU_ARCHITECTURES.get(machine, machine)


def check_cpu(recipe: EngineRecipe) -> None:
    """Raises Terminal (AcceleratorMismatch) where the recipe is for another CPU architecture."""
    ours, wanted = cpu_architecture(), recipe.platform.cpu_architecture
    if ours != wanted:
        raise Terminal(
            Reason.ACCELERATOR_MISMATCH,
            f"The engine is for CPUs of {wanted}, this node has {ours}: build it on a node with the label "
            f"kubernetes.io/arch={wanted}.",
        )
