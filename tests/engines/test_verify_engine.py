"""Engines held against their checkpoints: whatever is wrong with one is found, and an honest one never refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hotstart.engines.checkpoints.safetensors_folder import SafetensorsFolder
from hotstart.engines.errors import Reason, Terminal
from hotstart.engines.recipe import CTRANSLATE2_TOOLCHAIN, EngineRecipe
from hotstart.engines.runtimes.ctranslate2 import CTranslate2
from hotstart.engines.runtimes.ctranslate2_weights import quantize_rows
from hotstart.engines.verification import Verification
from hotstart.engines.verify.golden import GOLDEN_NAME, read_goldens
from hotstart.engines.verify.verify import Subject, verify_engine
from tokenizers import Tokenizer

from tests.support import tiny_checkpoint
from tests.support.tiny_checkpoint import TinyShape, write_tiny_checkpoint

FLOAT32 = EngineRecipe(CTRANSLATE2_TOOLCHAIN, dtype="float32", quantization="float32")
INT8 = replace(FLOAT32, quantization="int8")


@pytest.fixture(autouse=True)
def one_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its training is most of a tiny checkpoint's time."""
    monkeypatch.setattr(tiny_checkpoint, "make_tokenizer_json", cache(tiny_checkpoint.make_tokenizer_json))


def make_subject(folder: Path, recipe: EngineRecipe = INT8, **checkpoint: Any) -> Subject:
    """A tiny checkpoint and its engine."""
    opened = SafetensorsFolder(write_tiny_checkpoint(folder / "checkpoint", **checkpoint))
    engine = folder / "engine"
    engine.mkdir()
    CTranslate2().convert(opened, recipe, engine, lambda share: None)
    return Subject(opened, f"digest of {checkpoint}", "tokenizer", recipe, engine)


def verify(subject: Subject, kept: Path) -> Verification:
    return verify_engine(CTranslate2(), subject, kept / "kept")


def refuse(subject: Subject, kept: Path) -> str:
    """The message of the verification that fails."""
    with pytest.raises(Terminal) as failure:
        verify(subject, kept)
    assert failure.value.reason is Reason.VERIFICATION_FAILED
    assert not (subject.folder / GOLDEN_NAME).exists()
    return failure.value.message


def test_an_honest_engine_passes_and_gets_its_golden_questions(tmp_path: Path) -> None:
    subject = make_subject(tmp_path)
    seen: list[float] = []
    verification = verify_engine(CTranslate2(), subject, tmp_path / "kept", seen.append)
    assert verification.positions == 200
    assert 0 < verification.compared == verification.agreed < 200
    assert verification.agreed_of_all >= verification.agreed
    assert verification.worst_margin <= verification.epsilon
    assert seen == sorted(seen) and seen[-1] == 1.0
    goldens = read_goldens(subject.folder)
    tokenizer = Tokenizer.from_file(str(subject.folder / "tokenizer.json"))
    assert 1 <= len(goldens) <= 10
    for golden in goldens:
        assert tuple(tokenizer.encode(golden.text).ids) == golden.ids
        assert golden.token not in subject.checkpoint.eos_ids
    scorer = CTranslate2().open_scorer(subject.folder, INT8)
    assert [scorer.top_tokens(g.ids, [len(g.ids) - 1])[0] for g in goldens] == [g.token for g in goldens]
    assert [scorer.next_token(g.ids) for g in goldens] == [g.token for g in goldens]


def test_what_the_checkpoint_answers_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = make_subject(tmp_path)
    first = verify(subject, tmp_path)
    golden = (subject.folder / GOLDEN_NAME).read_bytes()
    monkeypatch.setattr("hotstart.engines.verify.verify.make_reference", None)
    assert replace(verify(subject, tmp_path), seconds=0) == replace(first, seconds=0)
    assert (subject.folder / GOLDEN_NAME).read_bytes() == golden
    other = replace(subject, checkpoint_digest="another")
    with pytest.raises(TypeError):
        verify(other, tmp_path)


def test_a_damaged_expectation_is_computed_anew(tmp_path: Path) -> None:
    subject = make_subject(tmp_path)
    first = verify(subject, tmp_path)
    [kept] = (tmp_path / "kept").iterdir()
    kept.write_text(kept.read_text()[:100])
    assert replace(verify(subject, tmp_path), seconds=0) == replace(first, seconds=0)
    assert json.loads(kept.read_text())["reference"] == "numpy"


# ------------------------------------------------------------------------------------------------- what is wrong


class Tampered:
    """A checkpoint that gives other weights to a converter than it holds."""

    def __init__(self, checkpoint: Any, change: Callable[[str, np.ndarray], np.ndarray]) -> None:
        self._checkpoint, self._change = checkpoint, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._checkpoint, name)

    def tensor(self, name: str) -> np.ndarray:
        return self._change(name, self._checkpoint.tensor(name))


def rebuild(subject: Subject, change: Callable[[str, np.ndarray], np.ndarray]) -> Subject:
    """The subject with an engine of tampered weights."""
    for path in subject.folder.iterdir():
        path.unlink()
    CTranslate2().convert(Tampered(subject.checkpoint, change), subject.recipe, subject.folder, lambda share: None)
    return subject


LINEAR = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


@pytest.mark.parametrize("recipe", [FLOAT32, INT8], ids=["float32", "int8"])
@pytest.mark.parametrize("name", LINEAR)
def test_permuted_weights_of_one_layer_are_found(tmp_path: Path, recipe: EngineRecipe, name: str) -> None:
    permuted = f"model.layers.1.{name}.weight"

    def change(tensor: str, value: np.ndarray) -> np.ndarray:
        return np.random.default_rng(1).permutation(value) if tensor == permuted else value

    message = refuse(rebuild(make_subject(tmp_path, recipe), change), tmp_path)
    assert "next token is not the checkpoint's" in message and "Take a finer quantization" in message


def test_two_layers_that_changed_places_are_found(tmp_path: Path) -> None:
    subject = make_subject(tmp_path, layers=4)

    def change(tensor: str, value: np.ndarray) -> np.ndarray:
        swapped = {"model.layers.1.": "model.layers.2.", "model.layers.2.": "model.layers.1."}
        for here, there in swapped.items():
            if tensor.startswith(here):
                return subject.checkpoint.tensor(tensor.replace(here, there))
        return value

    refuse(rebuild(subject, change), tmp_path)


def test_another_rotary_base_is_found(tmp_path: Path) -> None:
    subject = make_subject(tmp_path, FLOAT32, shape=TinyShape(rope_base=10000.0))
    config = subject.folder.parent / "checkpoint" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rope_theta": 500000.0}))
    other = SafetensorsFolder(config.parent)
    assert other.facts.rope_base == 500000.0
    refuse(replace(subject, checkpoint=other), tmp_path)


def test_an_engine_of_another_seed_is_found(tmp_path: Path) -> None:
    ours = make_subject(tmp_path / "ours")
    other = make_subject(tmp_path / "other", seed=1)
    refuse(replace(ours, folder=other.folder), tmp_path)


def find_tensor(model: bytes, value: np.ndarray) -> int:
    """Where the tensor's bytes begin in the engine's file."""
    found = model.find(np.ascontiguousarray(value).tobytes())
    assert found > 0, "the tensor stands in the file as it is"
    return found


def flip_highest_exponent_bit(path: Path, values: np.ndarray, index: int) -> None:
    """Flips it in one float32 of those that stand in the file."""
    model = bytearray(path.read_bytes())
    model[find_tensor(bytes(model), values) + 4 * index + 3] ^= 0x40
    path.write_bytes(model)


@pytest.mark.parametrize("name", [*LINEAR[3:], "input_layernorm", "post_attention_layernorm"])
def test_a_flipped_exponent_bit_of_one_weight_is_found(tmp_path: Path, name: str) -> None:
    subject = make_subject(tmp_path, FLOAT32)
    weight = subject.checkpoint.tensor(f"model.layers.1.{name}.weight")
    flip_highest_exponent_bit(subject.folder / "model.bin", weight, weight.size // 3)
    refuse(subject, tmp_path)


def test_a_flipped_exponent_bit_of_one_scale_is_found(tmp_path: Path) -> None:
    subject = make_subject(tmp_path, INT8)
    _, scales = quantize_rows(subject.checkpoint.tensor("model.layers.0.self_attn.o_proj.weight"))
    flip_highest_exponent_bit(subject.folder / "model.bin", scales, 7)
    refuse(subject, tmp_path)


def test_a_file_that_is_cut_short_is_found(tmp_path: Path) -> None:
    subject = make_subject(tmp_path)
    path = subject.folder / "model.bin"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "cannot be loaded" in refuse(subject, tmp_path)


def test_an_engine_that_computes_no_numbers_is_found(tmp_path: Path) -> None:
    subject = make_subject(tmp_path, FLOAT32)

    def change(tensor: str, value: np.ndarray) -> np.ndarray:
        return np.full_like(value, 3e38) if tensor == "model.layers.0.mlp.down_proj.weight" else value

    assert "NaN or Inf" in refuse(rebuild(subject, change), tmp_path)


def test_a_tokenizer_of_another_checkpoint_is_found(tmp_path: Path) -> None:
    subject = make_subject(tmp_path)
    path = subject.folder / "tokenizer.json"
    value = json.loads(path.read_text())
    vocab = value["model"]["vocab"]
    vocab["e"], vocab["t"] = vocab["t"], vocab["e"]
    path.write_text(json.dumps(value))
    assert "gives other tokens" in refuse(subject, tmp_path)


class TwoMinds:
    """A runtime whose second load answers otherwise."""

    def __init__(self) -> None:
        self.loads = 0

    def open_scorer(self, folder: Path, recipe: EngineRecipe) -> Any:
        self.loads += 1
        scorer, shift = CTranslate2().open_scorer(folder, recipe), self.loads - 1

        class Scorer:
            def top_tokens(self, ids: Any, positions: Any) -> tuple[int, ...]:
                return scorer.top_tokens(ids, positions)

            def next_token(self, ids: Any) -> int | None:
                token = scorer.next_token(ids)
                return None if token is None else token + shift

        return Scorer()


def test_two_loads_that_differ_are_found(tmp_path: Path) -> None:
    with pytest.raises(Terminal, match="loaded again it generates another token"):
        verify_engine(TwoMinds(), make_subject(tmp_path), tmp_path / "kept")


@pytest.mark.parametrize(("limit", "positions"), [(128, 200), (64, 100), (40, 60)])
def test_no_more_tokens_are_asked_than_the_engine_takes(tmp_path: Path, limit: int, positions: int) -> None:
    recipe = replace(
        INT8,
        toolchain=replace(CTRANSLATE2_TOOLCHAIN, runtime="tensorrt_llm"),
        limits=replace(INT8.limits, input_tokens=limit),
    )

    class Narrow:
        def open_scorer(self, folder: Path, recipe: EngineRecipe) -> Any:
            scorer = CTranslate2().open_scorer(folder, recipe)

            class Scorer:
                def top_tokens(self, ids: Any, positions: Any) -> tuple[int, ...]:
                    assert len(ids) <= limit and max(positions) < limit
                    return scorer.top_tokens(ids, positions)

                def next_token(self, ids: Any) -> int | None:
                    assert len(ids) <= limit
                    return scorer.next_token(ids)

            return Scorer()

    subject = replace(make_subject(tmp_path), recipe=recipe)
    verification = verify_engine(Narrow(), subject, tmp_path / "kept")
    assert verification.positions == positions
    assert 0 < verification.compared == verification.agreed


# ---------------------------------------------------------------------------------------------- what is honest

SHAPES = (
    TinyShape(),
    TinyShape(tied=False),
    TinyShape(kv_heads=4, width=32, intermediate=64),
    TinyShape(layers=3, kv_heads=1, rope_base=100000.0),
)


@pytest.mark.parametrize("seed", range(17))
def test_two_hundred_honest_engines_pass(tmp_path: Path, seed: int) -> None:
    """17 seeds, 4 shapes, 3 quantizations: 204 engines."""
    for number, shape in enumerate(SHAPES):
        for recipe in (FLOAT32, INT8, replace(FLOAT32, quantization="int8_float32")):
            folder = tmp_path / f"{number}-{recipe.quantization}"
            dtype = ("float32", "float16", "bfloat16")[(seed + number) % 3]
            subject = make_subject(folder, recipe, shape=shape, seed=seed, dtype=dtype)
            verification = verify(replace(subject, checkpoint_digest=str(number)), tmp_path)
            assert verification.compared >= 5, "enough positions are compared to tell right from wrong"
