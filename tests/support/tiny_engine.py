"""A small ctranslate2 engine from a tiny checkpoint, by the builder's own code, for tests that need a real one."""

from __future__ import annotations

import json
from pathlib import Path

from hotstart.engines.checkpoints.safetensors_folder import SafetensorsFolder
from hotstart.engines.recipe import CTRANSLATE2_TOOLCHAIN, EngineRecipe
from hotstart.engines.runtimes.ctranslate2 import CTranslate2
from hotstart.engines.verify.golden import GOLDEN_NAME
from hotstart.engines.verify.verify import Subject, verify_engine

from tests.support.tiny_checkpoint import TinyShape, write_tiny_checkpoint

RECIPE = EngineRecipe(CTRANSLATE2_TOOLCHAIN, dtype="float32", quantization="int8_float32")


def write_tiny_engine(folder: Path, *, shape: TinyShape | None = None, seed: int = 0) -> Path:
    """Writes an engine into ``folder`` (made if need be) and returns it. A few hundred KB, a second."""
    checkpoint = write_tiny_checkpoint(folder.with_name(folder.name + "-checkpoint"), shape=shape, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    CTranslate2().convert(SafetensorsFolder(checkpoint), RECIPE, folder, lambda share: None)
    return folder


def write_verified_engine(folder: Path, *, shape: TinyShape | None = None, seed: int = 0) -> Path:
    """As ``write_tiny_engine``, then verified: with golden.json beside it, as a builder publishes it."""
    write_tiny_engine(folder, shape=shape, seed=seed)
    checkpoint = SafetensorsFolder(folder.with_name(folder.name + "-checkpoint"))
    subject = Subject(checkpoint, "checkpoint", "tokenizer", RECIPE, folder)
    verify_engine(CTranslate2(), subject, folder.with_name(folder.name + "-expectations"))
    return folder


def tamper_with_goldens(folder: Path) -> None:
    """Another answer to the second of an engine's golden questions."""
    value = json.loads((folder / GOLDEN_NAME).read_text())
    value["goldens"][1]["token"] ^= 1
    (folder / GOLDEN_NAME).write_text(json.dumps(value))
