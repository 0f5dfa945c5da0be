"""The way through Triton: a real server with the completion model over the stand-in for TensorRT-LLM's backend."""

from __future__ import annotations

import json
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hotstart.engines.builder.calibration import calibrate_engine
from hotstart.engines.calibrate.measure import Prompts, Sweeper
from hotstart.engines.calibrate.plan import Budget, make_plan
from hotstart.engines.calibrate.samples import CalibrationFailed
from hotstart.engines.calibrate.triton import OwnTriton, make_text
from hotstart.engines.calibrate.vocabulary import read_vocabulary
from hotstart.engines.errors import Reason, Terminal
from hotstart.engines.recipe import EngineLimits
from hotstart.engines.triton.server import Installation
from hotstart.engines.verify.golden import GOLDEN_NAME, Golden, make_golden_json
from hotstart.exchange.messages import ServingOptions
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.support.standin_engine import make_backends, write_standin_engine
from tests.support.tiny_checkpoint import make_tokenizer_json
from tests.support.tiny_engine import RECIPE, write_tiny_engine
from tests.support.triton import SOURCES, installation

TOKENIZER = Tokenizer.from_str(make_tokenizer_json())
SERVING = ServingOptions(max_input_tokens=64, max_new_tokens=8, slo_ms=1000, stop_strings=(" ",))


@given(st.lists(st.integers(4, TOKENIZER.get_vocab_size() - 1), min_size=1, max_size=96))
def test_a_text_of_chance_is_read_as_as_many_tokens(tokens: list[int]) -> None:
    read = len(TOKENIZER.encode(make_text(TOKENIZER, tokens), add_special_tokens=False).ids)
    assert len(tokens) - 3 <= read <= len(tokens)


@pytest.mark.parametrize("length", [16, 64])
def test_prompts_of_chance_are_as_long_as_they_are_wanted(tmp_path: Path, length: int) -> None:
    """Whichever of thousands a sweep draws: one that is too short fails the whole calibration."""
    path = tmp_path / "tokenizer.json"
    path.write_text(make_tokenizer_json())
    vocabulary, chance = read_vocabulary(path, ()), random.Random(1)
    for _ in range(1000):
        text = make_text(TOKENIZER, chance.choices(vocabulary, k=length))
        assert length - 1 <= len(TOKENIZER.encode(text, add_special_tokens=False).ids) <= length


def write_engine(folder: Path, **facts: object) -> Path:
    """An engine of the stand-in, whose engine.json says ``facts`` too."""
    engine = write_standin_engine(folder / "engine", write_tiny_engine(folder / "ctranslate2"), batch_size=4)
    path = engine / "engine.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))
    return engine


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installation:
    monkeypatch.setenv("HOTSTART_SOURCES", os.pathsep.join(SOURCES))
    return replace(installation(), backends=make_backends(tmp_path / "backends"))


@pytest.mark.integration
def test_an_engine_is_measured_in_a_triton_of_its_own(tmp_path: Path, where: Installation) -> None:
    with OwnTriton(write_engine(tmp_path), SERVING, where) as completion:
        plan = make_plan(EngineLimits(4, 64, 128), SERVING, Budget(60.0, 0.05))
        sweeps = Sweeper(plan, completion, Prompts(completion.vocabulary)).run(lambda share: None)
    assert [result.step.concurrency for result in sweeps[1]] == [1, 2, 3, 1, 1, 4]
    for result in (*sweeps[0], *sweeps[1]):
        assert all(timing.new_tokens == 8 for timing in result.timings)
        assert all(0 < timing.first_token_ms <= timing.latency_ms for timing in result.timings)
        for timing in result.timings:
            assert result.step.input_tokens - 3 <= timing.input_tokens <= result.step.input_tokens


FIM = {name: f"<{name}>" for name in ("fim_prefix", "fim_suffix", "fim_middle")}


@pytest.mark.integration
@pytest.mark.parametrize("options", [{}, {"prompt_format": "fim", **FIM}], ids=["plain", "fim"])
def test_prompts_are_as_long_as_they_are_said_to_be_whatever_the_format_adds(
    tmp_path: Path, where: Installation, options: dict[str, object]
) -> None:
    """With every token an end token too: none may end a text, or no text would be as long as it must."""
    engine = write_engine(tmp_path, bos_id=0, eos_ids=[*range(3, 200)])
    serving = ServingOptions.model_validate({**SERVING.model_dump(), **options})
    with OwnTriton(engine, serving, where) as completion:
        assert not set(completion.vocabulary) & set(range(3, 200))
        prompts = Prompts(completion.vocabulary)
        for wanted in (64, 64, 64, 16):
            timing = completion(prompts.make(wanted), 8)
            assert wanted - 3 <= timing.input_tokens <= wanted
            assert timing.new_tokens == 8


@pytest.mark.integration
def test_an_engine_that_triton_serves_otherwise_is_refused(
    tmp_path: Path, where: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No measurement that fails: the build ends, and the key is quarantined."""
    monkeypatch.setattr("hotstart.engines.calibrate.triton.find_container", lambda: where)
    engine = write_engine(tmp_path)
    tokens = tuple(TOKENIZER.encode("def add(a, b):").ids)
    (engine / GOLDEN_NAME).write_text(make_golden_json((Golden("def add(a, b):", tokens, 511),)))
    recipe = replace(RECIPE, toolchain=replace(RECIPE.toolchain, runtime="tensorrt_llm"))
    with pytest.raises(Terminal, match="it gives token") as failure:
        calibrate_engine(engine, recipe, SERVING, beside=None, on_share=lambda share: None)
    assert failure.value.reason is Reason.VERIFICATION_FAILED


@pytest.mark.integration
def test_a_triton_that_cannot_load_the_engine_is_ended_and_its_words_are_told(
    tmp_path: Path, where: Installation
) -> None:
    engine = write_engine(tmp_path)
    (engine / "rank0.engine").write_bytes(b"nothing that can be loaded")
    with pytest.raises(CalibrationFailed, match="does not load the engine"):
        OwnTriton(engine, SERVING, where).__enter__()


def test_an_image_without_triton_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hotstart.engines.calibrate.triton.find_container", lambda: None)
    monkeypatch.setattr("hotstart.engines.calibrate.triton.find_installation", lambda site: None)
    with pytest.raises(CalibrationFailed, match="tritonserver is not in this image"), OwnTriton(tmp_path, SERVING):
        pass
