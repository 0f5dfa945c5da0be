"""Engines in the number formats of GPUs, emulated (``tests/support/emulated.py``): honest ones pass, broken ones fail.

What epsilon is for each format rests on the same emulation on a trained model (ADR 16). In fp8 and int4 few positions
of a network of chance are far enough apart to be compared; one that has none is refused, which is not shown here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hotstart.engines.checkpoints.checkpoint import Checkpoint
from hotstart.engines.checkpoints.safetensors_folder import SafetensorsFolder
from hotstart.engines.errors import Reason, Terminal
from hotstart.engines.recipe import CTRANSLATE2_TOOLCHAIN, EngineLimits, EngineRecipe
from hotstart.engines.verification import Verification
from hotstart.engines.verify.judge import DTYPES, QUANTIZATIONS
from hotstart.engines.verify.verify import Subject, verify_engine

from tests.support import emulated
from tests.support.emulated import Emulated
from tests.support.tiny_checkpoint import write_tiny_checkpoint
from tests.support.tiny_mpt import write_tiny_mpt

TOOLCHAIN = replace(CTRANSLATE2_TOOLCHAIN, runtime="tensorrt_llm")
FINE = [
    ("float16", "none"),
    ("bfloat16", "none"),
    ("float16", "int8_weight_only"),
    ("bfloat16", "int8_weight_only"),
]
COARSE = [("float16", "fp8"), ("float16", "int4_weight_only")]
NETWORKS: dict[str, Callable[..., Path]] = {"llama": write_tiny_checkpoint, "mpt": write_tiny_mpt}
SEEDS = (0, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("formats")


@pytest.fixture(scope="module")
def opened(folder: Path) -> Callable[[str, int], Checkpoint]:
    """A checkpoint by network and seed; what it answers is computed once, for all formats."""

    @cache
    def make(network: str, seed: int) -> Checkpoint:
        return SafetensorsFolder(NETWORKS[network](folder / f"{network}-{seed}", seed=seed))

    return make


def verify(checkpoint: Checkpoint, engine: Any, folder: Path, format_: tuple[str, str]) -> Verification:
    """Holds an emulated ``engine`` in a format against the checkpoint."""
    (folder / "tokenizer.json").write_bytes(checkpoint.tokenizer_json)
    recipe = EngineRecipe(TOOLCHAIN, *format_, limits=EngineLimits(8, 128, 256))
    subject = Subject(checkpoint, str(checkpoint.folder), "tokenizer", recipe, folder)
    return verify_engine(Emulated(engine), subject, folder / "kept")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("network", NETWORKS)
def test_honest_engines_of_every_format_pass(
    opened: Callable[[str, int], Checkpoint], folder: Path, network: str, seed: int
) -> None:
    checkpoint = opened(network, seed)
    for format_ in FINE:
        found = verify(checkpoint, checkpoint, folder, format_)
        assert found.compared == found.agreed >= 20, format_
        assert found.worst_margin < found.epsilon / 2, format_
    for format_ in COARSE if network == "mpt" else COARSE[:1]:
        found = verify(checkpoint, checkpoint, folder, format_)
        assert found.compared == found.agreed >= 1, format_
        assert found.agreed_of_all < 190, "an emulation that rounds nothing would agree everywhere"


class Tampered:
    """A checkpoint with one tensor's rows in another order."""

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        self._checkpoint, self._name = checkpoint, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._checkpoint, name)

    def tensor(self, name: str) -> np.ndarray:
        value = self._checkpoint.tensor(name)
        return np.random.default_rng(1).permutation(value) if name == self._name else value


@pytest.mark.parametrize("format_", FINE, ids="-".join)
@pytest.mark.parametrize(
    ("network", "name"),
    [("llama", "model.layers.1.mlp.down_proj.weight"), ("mpt", "transformer.blocks.1.ffn.down_proj.weight")],
)
def test_permuted_weights_of_one_layer_are_found_in_fine_formats(
    opened: Callable[[str, int], Checkpoint], folder: Path, network: str, name: str, format_: tuple[str, str]
) -> None:
    checkpoint = opened(network, 0)
    refuse(checkpoint, Tampered(checkpoint, name), folder, format_)


@pytest.mark.parametrize("format_", COARSE, ids="-".join)
def test_the_weights_of_another_checkpoint_are_found_in_coarse_ones(
    opened: Callable[[str, int], Checkpoint], folder: Path, format_: tuple[str, str]
) -> None:
    refuse(opened("mpt", 0), opened("mpt", 1), folder, format_)


def refuse(checkpoint: Checkpoint, engine: Any, folder: Path, format_: tuple[str, str]) -> None:
    with pytest.raises(Terminal, match="its next token is not the checkpoint's") as failure:
        verify(checkpoint, engine, folder, format_)
    assert failure.value.reason is Reason.VERIFICATION_FAILED


def test_every_format_of_tensorrt_llm_is_emulated() -> None:
    assert set(emulated.DTYPES) == set(DTYPES)
    assert set(emulated.QUANTIZATIONS) == set(QUANTIZATIONS) - {"float32", "int8", "int8_float32"}


@pytest.mark.parametrize(("given", "rounded"), [(448.0, 448.0), (17.0, 16.0), (19.0, 20.0), (0.001, 0.001953125)])
def test_fp8_has_three_bits_and_subnormals(given: float, rounded: float) -> None:
    assert emulated.to_fp8(np.array([448.0, given], np.float32))[1] == rounded


def test_integers_have_a_scale_for_each_row() -> None:
    given = np.array([[7.0, 3.4, -1.6], [0.7, 0.34, -0.16]], np.float32)
    assert np.allclose(emulated.to_integers(4, given), [[7, 3, -2], [0.7, 0.3, -0.2]])
