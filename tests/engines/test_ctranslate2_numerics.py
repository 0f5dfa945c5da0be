"""Engines compute what the checkpoint computes: CTranslate2 against an independent forward pass in numpy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import pytest
from ctranslate2.specs import common_spec
from hotstart.engines.checkpoints.checkpoint import ModelFacts, RopeScaling
from hotstart.engines.checkpoints.gguf_file import GgufFile
from hotstart.engines.checkpoints.safetensors_folder import SafetensorsFolder
from hotstart.engines.errors import Reason, Terminal
from hotstart.engines.recipe import CTRANSLATE2_TOOLCHAIN, EngineRecipe
from hotstart.engines.reference.llama import LlamaReference
from hotstart.engines.runtimes.ctranslate2 import CTranslate2
from hotstart.engines.runtimes.ctranslate2_weights import quantize_rows

from tests.support.tiny_checkpoint import (
    TinyShape,
    Weights,
    make_tiny_weights,
    write_tiny_checkpoint,
    write_tiny_gguf,
)

IDS = [5, 17, 300, 44, 44, 129, 8, 501, 260, 77, 31, 90]
FLOAT32 = EngineRecipe(CTRANSLATE2_TOOLCHAIN, dtype="float32", quantization="float32")
INT8 = replace(FLOAT32, quantization="int8")


def make_engine(checkpoint: Any, folder: Path, recipe: EngineRecipe = FLOAT32) -> Path:
    folder.mkdir(exist_ok=True)
    CTranslate2().convert(checkpoint, recipe, folder, lambda share: None)
    return folder


def logits_of(engine: Path, ids: list[int] = IDS) -> np.ndarray:
    generator = ctranslate2.Generator(str(engine), compute_type="float32", intra_threads=1)
    return np.asarray(generator.forward_batch([ids]))[0]


def reference(weights: Weights, facts: ModelFacts, ids: list[int] = IDS) -> np.ndarray:
    return LlamaReference(facts, weights.__getitem__).logits(ids)


SHAPES = {
    "grouped queries, tied": TinyShape(),
    "grouped queries, untied": TinyShape(tied=False),
    "as many keys as queries, tied": TinyShape(kv_heads=4),
    "as many keys as queries, untied": TinyShape(kv_heads=4, tied=False),
    "one key head": TinyShape(kv_heads=1),
    "another rotary base, three layers": TinyShape(layers=3, rope_base=100000.0),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_float32_engine_agrees_with_numpy(tmp_path: Path, shape: TinyShape) -> None:
    checkpoint = SafetensorsFolder(write_tiny_checkpoint(tmp_path / "c", shape=shape, seed=3))
    expected = reference(make_tiny_weights(shape, seed=3), checkpoint.facts)
    found = logits_of(make_engine(checkpoint, tmp_path / "e"))
    assert np.abs(found - expected).max() < 1e-3
    assert (found.argmax(axis=-1) == expected.argmax(axis=-1)).all()


@pytest.mark.parametrize(
    "scaling",
    [
        RopeScaling("linear", 4.0),
        RopeScaling("llama3", 8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192),
        RopeScaling("llama3", 32.0, low_freq_factor=2.0, high_freq_factor=5.0, original_context=4096),
    ],
    ids=lambda scaling: f"{scaling.kind} {scaling.factor}",
)
def test_scaled_rotary_positions_agree_with_numpy(tmp_path: Path, scaling: RopeScaling) -> None:
    shape = TinyShape(rope_base=500000.0)
    folder = write_tiny_checkpoint(tmp_path / "c", shape=shape)
    config = json.loads((folder / "config.json").read_text())
    config["rope_scaling"] = {
        "rope_type": scaling.kind,
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_context,
    }
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint = SafetensorsFolder(folder)
    assert checkpoint.facts.rope_scaling is not None
    ids = (IDS * 60)[:700]
    expected = reference(make_tiny_weights(shape), checkpoint.facts, ids)
    found = logits_of(make_engine(checkpoint, tmp_path / "e"), ids)
    assert np.abs(found - expected).max() < 2e-3


def test_biases_and_a_head_width_of_its_own_agree_with_numpy(tmp_path: Path) -> None:
    shape = TinyShape()
    random = np.random.default_rng(1)
    weights = make_tiny_weights(shape)
    for layer in range(shape.layers):
        for name, rows in {"q_proj": 96, "k_proj": 48, "v_proj": 48, "o_proj": 64}.items():
            columns = 96 if name == "o_proj" else 64
            stem = f"model.layers.{layer}.self_attn.{name}"
            weights[f"{stem}.weight"] = random.standard_normal((rows, columns), dtype=np.float32) / 6
            weights[f"{stem}.bias"] = random.standard_normal(rows, dtype=np.float32)
    folder = write_tiny_checkpoint(tmp_path / "c", shape=shape, weights=weights)
    config = json.loads((folder / "config.json").read_text()) | {"head_dim": 24, "attention_bias": True}
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint = SafetensorsFolder(folder)
    found = logits_of(make_engine(checkpoint, tmp_path / "e"))
    assert np.abs(found - reference(weights, checkpoint.facts)).max() < 1e-3


@pytest.mark.parametrize(("dtype", "shards"), [("float16", 1), ("bfloat16", 3), ("float32", 2)])
def test_storage_types_and_shards_change_nothing_but_rounding(tmp_path: Path, dtype: str, shards: int) -> None:
    checkpoint = SafetensorsFolder(write_tiny_checkpoint(tmp_path / "c", dtype=dtype, shards=shards))
    stored = {name: checkpoint.tensor(name) for name in checkpoint.shapes()}
    exact = make_tiny_weights()
    assert stored.keys() == exact.keys()
    tolerance = {"float32": 0, "float16": 1e-3, "bfloat16": 8e-3}[dtype]
    for name, value in stored.items():
        np.testing.assert_allclose(value, exact[name], rtol=tolerance, atol=1e-4 if tolerance else 0)
    found = logits_of(make_engine(checkpoint, tmp_path / "e"))
    assert np.abs(found - reference(stored, checkpoint.facts)).max() < 1e-3


def test_a_gguf_gives_the_same_engine_as_its_safetensors(tmp_path: Path) -> None:
    from_gguf = make_engine(GgufFile(write_tiny_gguf(tmp_path / "tiny.gguf")), tmp_path / "g", INT8)
    from_folder = make_engine(SafetensorsFolder(write_tiny_checkpoint(tmp_path / "c")), tmp_path / "s", INT8)
    for name in ("model.bin", "config.json", "vocabulary.json", "engine.json"):
        assert (from_gguf / name).read_bytes() == (from_folder / name).read_bytes(), name


def test_int8_is_quantized_as_the_library_does_it(tmp_path: Path) -> None:
    value = make_tiny_weights()["model.embed_tokens.weight"].copy()
    value[7] = 0
    value[9] = 1e-42
    spec = common_spec.LinearSpec()
    spec.weight = value.copy()
    spec.validate()
    spec.optimize("int8")
    rows, scales = quantize_rows(value, block=100)
    np.testing.assert_array_equal(rows, spec.weight.numpy())
    np.testing.assert_array_equal(scales, spec.weight_scale.numpy())


def test_int8_stays_near_float32_and_is_a_quarter_of_its_size(tmp_path: Path) -> None:
    checkpoint = SafetensorsFolder(write_tiny_checkpoint(tmp_path / "c", shape=TinyShape(layers=4, intermediate=512)))
    full = make_engine(checkpoint, tmp_path / "f")
    small = make_engine(checkpoint, tmp_path / "i", INT8)
    left, right = logits_of(full), logits_of(small)
    assert np.corrcoef(left.ravel(), right.ravel())[0, 1] > 0.99
    assert (small / "model.bin").stat().st_size < 0.3 * (full / "model.bin").stat().st_size


def test_converting_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    checkpoint = SafetensorsFolder(write_tiny_checkpoint(tmp_path / "c"))
    first, second = (make_engine(checkpoint, tmp_path / name, INT8) for name in "ab")
    assert {p.name: p.read_bytes() for p in first.iterdir()} == {p.name: p.read_bytes() for p in second.iterdir()}


def test_progress_counts_weights_up_to_one(tmp_path: Path) -> None:
    seen: list[float] = []
    checkpoint = SafetensorsFolder(write_tiny_checkpoint(tmp_path / "c"))
    (tmp_path / "e").mkdir()
    CTranslate2().convert(checkpoint, INT8, tmp_path / "e", seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert len(seen) == len(checkpoint.shapes())


@pytest.mark.parametrize("quantization", ["none", "int4_weight_only"])
def test_a_quantization_of_another_runtime_is_refused_by_name(tmp_path: Path, quantization: str) -> None:
    checkpoint = SafetensorsFolder(write_tiny_checkpoint(tmp_path / "c"))
    with pytest.raises(Terminal, match=quantization) as failure:
        make_engine(checkpoint, tmp_path / "e", replace(FLOAT32, quantization=quantization))
    assert failure.value.reason is Reason.UNSUPPORTED_RECIPE
