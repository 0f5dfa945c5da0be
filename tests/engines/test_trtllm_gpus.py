"""GPUs that a container sees against those that a recipe is for."""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata

import pytest
from hotstart.engines.accelerators import find_accelerator, make_platform
from hotstart.engines.errors import EngineError, Reason, Terminal
from hotstart.engines.recipe import EngineRecipe
from hotstart.engines.runtimes.tensorrt_llm import gpus
from hotstart.engines.runtimes.tensorrt_llm.gpus import VisibleGpu, find_mismatch, parse_gpus, parse_partitions
from hotstart.engines.runtimes.tensorrt_llm.versions import runtime_version, tensorrt_version
from hotstart.engines.toolchains import find_toolchain

H100 = "NVIDIA H100 80GB HBM3, 9.0, 81559, 590.44.01\n"
PARTITIONED = """GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)
  MIG 1g.10gb     Device  0: (UUID: MIG-1)
  MIG 1g.10gb     Device  1: (UUID: MIG-2)
"""


def recipe_for(product: str, mig: str | None = None, ranks: int = 1) -> EngineRecipe:
    found = find_accelerator(product, mig)
    assert found is not None
    toolchain = find_toolchain("tensorrt_llm", "MPTForCausalLM")
    return EngineRecipe(toolchain, "float16", "none", tensor_parallel=ranks, platform=make_platform(found))


def test_what_the_driver_says_is_read() -> None:
    text = f"Warning: persistence mode is disabled\n{H100}NVIDIA A10, 8.6, [N/A], 535.86.10\n\n"
    assert parse_gpus(text) == (
        VisibleGpu("NVIDIA-H100-80GB-HBM3", 90, 81559, "590.44.01"),
        VisibleGpu("NVIDIA-A10", 86, 0, "535.86.10"),
    )
    assert parse_partitions(PARTITIONED) == ("1g.10gb", "1g.10gb")
    assert parse_partitions("GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)\n") == ()


def test_the_gpu_that_the_recipe_is_for_is_right() -> None:
    assert find_mismatch(parse_gpus(H100), (), recipe_for("NVIDIA-H100-80GB-HBM3")) == ""
    assert find_mismatch(parse_gpus(H100 * 2), (), recipe_for("NVIDIA-H100-80GB-HBM3", ranks=2)) == ""
    partition = recipe_for("NVIDIA-H100-80GB-HBM3", "1g.10gb")
    assert find_mismatch(parse_gpus(H100), ("1g.10gb",), partition) == ""


MISMATCHES = [
    ("", (), recipe_for("NVIDIA-L4"), "sees no GPU"),
    (
        H100,
        (),
        recipe_for("NVIDIA-L4"),
        "The engine is for 1 NVIDIA-L4 (sm_89), the container sees 1 NVIDIA-H100-80GB-HBM3 (SM 90, driver 590.44.01).",
    ),
    (H100, (), recipe_for("NVIDIA-H100-80GB-HBM3", ranks=2), "is for 2 NVIDIA-H100-80GB-HBM3"),
    (H100, ("1g.10gb",), recipe_for("NVIDIA-H100-80GB-HBM3"), "whole NVIDIA-H100-80GB-HBM3, the container sees"),
    (H100, ("2g.20gb",), recipe_for("NVIDIA-H100-80GB-HBM3", "1g.10gb"), "partitions 2g.20gb"),
    (H100, (), recipe_for("NVIDIA-H100-80GB-HBM3", "1g.10gb"), "partitions none"),
    (H100.replace("590", "470"), (), recipe_for("NVIDIA-H100-80GB-HBM3"), "driver 470.44.01 is too old for CUDA 13"),
    (
        "NVIDIA GeForce RTX 4090, 8.9, 24564, 550.54.15",
        (),
        recipe_for("NVIDIA-GeForce-RTX-4090"),
        "driver 550.54.15 is too old for CUDA 13 on NVIDIA-GeForce-RTX-4090: install 580 or later",
    ),
]


@pytest.mark.parametrize(
    ("text", "partitions", "recipe", "words"), MISMATCHES, ids=[words[:30] for *_, words in MISMATCHES]
)
def test_another_gpu_is_named_with_its_driver(
    text: str, partitions: tuple[str, ...], recipe: EngineRecipe, words: str
) -> None:
    assert words in find_mismatch(parse_gpus(text), partitions, recipe)


def test_a_machine_without_a_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "QUERY", ("no-such-nvidia-smi",))
    with pytest.raises(EngineError, match="cannot be asked") as failure:
        gpus.check_gpus(recipe_for("NVIDIA-L4"))
    assert failure.value.reason is Reason.ACCELERATOR_MISMATCH
    monkeypatch.setattr(gpus, "QUERY", ("sh", "-c", "echo NVIDIA-SMI has failed; exit 9"))
    with pytest.raises(EngineError, match=r"exit 9 \(NVIDIA-SMI has failed\)"):
        gpus.check_gpus(recipe_for("NVIDIA-L4"))


def test_the_driver_of_this_machine_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "QUERY", ("echo", H100))
    monkeypatch.setattr(gpus, "LIST", ("echo", PARTITIONED))
    gpus.check_gpus(recipe_for("NVIDIA-H100-80GB-HBM3", "1g.10gb", ranks=2))
    with pytest.raises(Terminal, match=r"Change engine\.accelerator"):
        gpus.check_gpus(recipe_for("NVIDIA-L4"))


def test_versions_are_those_of_the_installed_packages() -> None:
    installed = {"tensorrt_llm": "1.2.1", "tensorrt_cu13": "10.14.1.48.post1"}

    def find(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    assert (runtime_version(find), tensorrt_version(find)) == ("1.2.1", "10.14.1.48")
    installed.clear()
    with pytest.raises(Terminal, match="has no TensorRT-LLM") as failure:
        runtime_version(find)
    assert failure.value.reason is Reason.TOOLCHAIN_MISMATCH


def test_a_product_of_another_sm_is_another_gpu() -> None:
    recipe = recipe_for("NVIDIA-H100-80GB-HBM3")
    other = replace(recipe, platform=replace(recipe.platform, gpu_sm="sm_100"))
    assert "(sm_100)" in find_mismatch(parse_gpus(H100), (), other)
