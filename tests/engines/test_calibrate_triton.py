"""The way through Triton: a real server with the completion model over the stand-in for TensorRT-LLM's backend."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hotstart.engines.calibrate.measure import Prompts, Sweeper
from hotstart.engines.calibrate.plan import Budget, make_plan
from hotstart.engines.calibrate.samples import CalibrationFailed
from hotstart.engines.calibrate.triton import OwnTriton, make_text
from hotstart.engines.recipe import EngineLimits
from hotstart.exchange.messages import ServingOptions
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.support.standin_engine import make_backends, write_standin_engine
from tests.support.tiny_checkpoint import make_tokenizer_json
from tests.support.tiny_engine import write_tiny_engine
from tests.support.triton import SOURCES, installation

TOKENIZER = Tokenizer.from_str(make_tokenizer_json())
SERVING = ServingOptions(max_input_tokens=64, max_new_tokens=8, slo_ms=1000, stop_strings=(" ",))


@given(st.lists(st.integers(4, TOKENIZER.get_vocab_size() - 1), min_size=1, max_size=96))
def test_a_text_of_chance_is_read_as_about_as_many_tokens(tokens: list[int]) -> None:
    text = make_text(TOKENIZER, tokens)
    assert len(TOKENIZER.encode(text, add_special_tokens=False).ids) <= len(tokens) + 2


@pytest.mark.integration
def test_an_engine_is_measured_in_a_triton_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTSTART_SOURCES", os.pathsep.join(SOURCES))
    engine = write_standin_engine(tmp_path / "engine", write_tiny_engine(tmp_path / "ctranslate2"), batch_size=4)
    where = replace(installation(), backends=make_backends(tmp_path / "backends"))
    with OwnTriton(engine, SERVING, where) as completion:
        plan = make_plan(EngineLimits(4, 64, 128), SERVING, Budget(60.0, 0.05))
        sweeps = Sweeper(plan, completion, Prompts(completion.vocabulary)).run(lambda share: None)
    assert [result.step.concurrency for result in sweeps[1]] == [1, 2, 3, 1, 1, 4]
    for result in (*sweeps[0], *sweeps[1]):
        assert all(timing.new_tokens == 8 for timing in result.timings)
        assert all(0 < timing.first_token_ms <= timing.latency_ms for timing in result.timings)
        read = [timing.input_tokens for timing in result.timings]
        assert max(read) <= result.step.input_tokens + 2
        assert min(read) >= result.step.input_tokens // 2


@pytest.mark.integration
def test_a_triton_that_cannot_load_the_engine_is_ended_and_its_words_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOTSTART_SOURCES", os.pathsep.join(SOURCES))
    engine = write_standin_engine(tmp_path / "engine", write_tiny_engine(tmp_path / "ctranslate2"))
    (engine / "rank0.engine").write_bytes(b"nothing that can be loaded")
    where = replace(installation(), backends=make_backends(tmp_path / "backends"))
    with pytest.raises(CalibrationFailed, match="does not load the engine"):
        OwnTriton(engine, SERVING, where).__enter__()


def test_an_image_without_triton_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hotstart.engines.calibrate.triton.find_container", lambda: None)
    monkeypatch.setattr("hotstart.engines.calibrate.triton.find_installation", lambda site: None)
    with pytest.raises(CalibrationFailed, match="tritonserver is not in this image"), OwnTriton(tmp_path, SERVING):
        pass
