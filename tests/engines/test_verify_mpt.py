"""MPT engines held against their checkpoints: honest ones pass, and what is wrong with attention biases is found."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hotstart.engines.checkpoints.safetensors_folder import SafetensorsFolder
from hotstart.engines.errors import Reason, Terminal
from hotstart.engines.recipe import EngineRecipe
from hotstart.engines.runtimes.ctranslate2 import CTranslate2
from hotstart.engines.verification import Verification
from hotstart.engines.verify.verify import Subject, verify_engine

from tests.support import tiny_mpt
from tests.support.tiny_mpt import TinyMptShape, write_tiny_mpt

RECIPE = EngineRecipe(CTranslate2().toolchain("hotstart-mpt"), dtype="float32", quantization="float32")
INT8 = replace(RECIPE, quantization="int8")


@pytest.fixture(autouse=True)
def one_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_mpt, "make_tokenizer_json", cache(tiny_mpt.make_tokenizer_json))


def make_subject(folder: Path, recipe: EngineRecipe = RECIPE, **checkpoint: Any) -> Subject:
    opened = SafetensorsFolder(write_tiny_mpt(folder / "checkpoint", **checkpoint))
    engine = folder / "engine"
    engine.mkdir(parents=True)
    CTranslate2().convert(opened, recipe, engine, lambda share: None)
    return Subject(opened, "checkpoint", "tokenizer", recipe, engine)


def verify(subject: Subject) -> Verification:
    return verify_engine(CTranslate2(), subject, subject.folder.parent / "kept")


def refuse(subject: Subject) -> str:
    with pytest.raises(Terminal) as failure:
        verify(subject)
    assert failure.value.reason is Reason.VERIFICATION_FAILED
    return failure.value.message


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("recipe", [RECIPE, INT8], ids=["float32", "int8"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_honest_engines_pass(tmp_path: Path, recipe: EngineRecipe, kv_heads: int, seed: int) -> None:
    verification = verify(make_subject(tmp_path, recipe, shape=TinyMptShape(kv_heads=kv_heads), seed=seed))
    assert verification.compared == verification.agreed >= 5


def with_config(subject: Subject, **attention: Any) -> Subject:
    """The subject with a checkpoint whose config says otherwise than what its engine was made of."""
    folder = subject.folder.parent / "other"
    original = subject.folder.parent / "checkpoint"
    folder.mkdir()
    for path in original.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["attn_config"] |= attention
    (folder / "config.json").write_text(json.dumps(config))
    return replace(subject, checkpoint=SafetensorsFolder(folder))


@pytest.mark.parametrize("recipe", [RECIPE, INT8], ids=["float32", "int8"])
@pytest.mark.parametrize("bias_max", [1, 32])
def test_wrong_alibi_slopes_are_found(tmp_path: Path, recipe: EngineRecipe, bias_max: int) -> None:
    subject = make_subject(tmp_path, recipe, shape=TinyMptShape(heads=8, kv_heads=4))
    assert "next token is not the checkpoint's" in refuse(with_config(subject, alibi_bias_max=bias_max))


def test_slopes_in_the_wrong_order_of_heads_are_found(tmp_path: Path) -> None:
    """As if the heads had changed places, and their slopes had not."""
    shape = TinyMptShape(heads=8, kv_heads=8)
    subject = make_subject(tmp_path, RECIPE, shape=shape)
    width = shape.width // shape.heads

    class Turned:
        def __getattr__(self, name: str) -> Any:
            return getattr(subject.checkpoint, name)

        def tensor(self, name: str) -> np.ndarray:
            value = subject.checkpoint.tensor(name)
            if name.endswith("Wqkv.weight"):
                return value.reshape(3, shape.heads, width, -1)[:, ::-1].reshape(value.shape)
            if name.endswith("out_proj.weight"):
                return np.ascontiguousarray(value.reshape(len(value), shape.heads, width)[:, ::-1].reshape(value.shape))
            return value

    for path in subject.folder.iterdir():
        path.unlink()
    CTranslate2().convert(Turned(), RECIPE, subject.folder, lambda share: None)
    assert "next token is not the checkpoint's" in refuse(subject)


def test_a_forgotten_clip_is_found(tmp_path: Path) -> None:
    subject = make_subject(tmp_path, RECIPE, shape=TinyMptShape())
    refuse(with_config(subject, clip_qkv=0.3))
