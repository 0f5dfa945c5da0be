"""The pure parts of verification: positions, expectations as text, epsilons, the judgement; what the wheel holds."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hatchling.builders.wheel import WheelBuilder
from hotstart.engines.verify.expect import Expectation, find_tops, make_name
from hotstart.engines.verify.judge import DTYPES, QUANTIZATIONS, decide_epsilon, judge
from hotstart.engines.verify.samples import (
    POSITIONS_A_SAMPLE,
    TOKENS_A_SAMPLE,
    Question,
    choose_positions,
    load_samples,
    make_questions,
)
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.support.tiny_checkpoint import make_tokenizer_json

ROOT = Path(__file__).resolve().parents[2]
EXPECTATION = Expectation(
    questions=(Question("a", (1, 2, 3, 4), (1, 3)), Question("b", (5, 6), (0, 1))),
    tokens=((7, 8), (9, 10)),
    margins=((0.5, 3.0), (2.0, 1.0)),
    spread=2.0,
    reference="numpy",
    seconds=1.0,
)


@given(st.integers(1, 300))
def test_positions_are_within_the_text_and_the_last_one_is_asked(length: int) -> None:
    positions = choose_positions(length)
    assert positions == tuple(sorted(set(positions)))
    assert positions[0] >= 0 and positions[-1] == length - 1
    assert len(positions) <= POSITIONS_A_SAMPLE
    if length >= 40:
        assert len(positions) == POSITIONS_A_SAMPLE


@pytest.mark.parametrize(("context", "longest"), [(0, TOKENS_A_SAMPLE), (64, 64), (4096, TOKENS_A_SAMPLE)])
def test_questions_begin_with_the_checkpoints_own_token_and_keep_to_its_context(context: int, longest: int) -> None:
    tokenizer = Tokenizer.from_str(make_tokenizer_json())
    questions = make_questions(load_samples(), tokenizer, 3, context)
    assert len(questions) == 10
    assert {question.ids[0] for question in questions} == {3}
    assert {len(question.ids) for question in questions} == {longest}


def test_the_top_token_and_its_margin() -> None:
    tokens, margins = find_tops(np.array([[0.0, 3.0, 1.0], [-1.0, -2.0, -1.5]], dtype=np.float32))
    assert (tokens, margins) == ((1, 0), (2.0, 0.5))


def test_an_expectation_is_read_as_it_was_written() -> None:
    assert Expectation.from_json(EXPECTATION.to_json()) == EXPECTATION
    with pytest.raises(ValueError, match="differ in number"):
        Expectation.from_json(replace(EXPECTATION, tokens=((7,), (9, 10))).to_json())


def test_an_expectation_is_kept_by_all_that_it_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {make_name("a", "b"), make_name("a", "c"), make_name("c", "b")}
    for name in ("SAMPLES_VERSION", "REFERENCE_VERSION"):
        monkeypatch.setattr(f"hotstart.engines.verify.expect.{name}", 99)
        names.add(make_name("a", "b"))
    assert len(names) == 5


def test_the_engine_must_agree_only_above_epsilon() -> None:
    found = judge(EXPECTATION, ((0, 8), (9, 0)), epsilon=1.5, seconds=0.5)
    assert found.failure == ""
    told = found.verification
    assert (told.positions, told.compared, told.agreed, told.agreed_of_all) == (4, 2, 2, 2)
    assert (told.worst_margin, told.epsilon, told.seconds, told.reference) == (1.0, 1.5, 1.5, "numpy")


def test_the_worst_difference_is_named() -> None:
    found = judge(EXPECTATION, ((7, 0), (0, 10)), epsilon=1.5, seconds=0.0, say=lambda token: f"<{token}>")
    assert "at 2 of 2 positions" in found.failure
    assert "worst in a after token 3, <0> for <8> against a margin of 3" in found.failure


def test_nothing_to_compare_is_a_failure_and_what_was_not_asked_does_not_count() -> None:
    found = judge(EXPECTATION, ((7, 8), (9, 10)), epsilon=5.0, seconds=0.0)
    assert "at none of 4 positions" in found.failure
    partly = judge(EXPECTATION, ((7, None), (None, None)), epsilon=0.1, seconds=0.0)
    assert (partly.verification.positions, partly.failure) == (1, "")


@given(st.lists(st.integers(7, 10), min_size=4, max_size=4), st.floats(0, 4))
def test_a_judgement_counts_what_there_is(answers: list[int], epsilon: float) -> None:
    found = judge(EXPECTATION, (answers[:2], answers[2:]), epsilon=epsilon, seconds=0.0)
    told = found.verification
    assert told.agreed <= told.compared <= told.positions
    assert told.agreed <= told.agreed_of_all <= told.positions
    assert (found.failure == "") == (told.compared == told.agreed > 0)
    assert (told.worst_margin > epsilon) == (told.agreed < told.compared)


def test_every_number_format_of_the_api_has_an_epsilon_and_coarser_ones_a_larger_one() -> None:
    from hotstart.operator.api.model_spec import Dtype, Quantization

    assert {str(dtype) for dtype in Dtype} <= DTYPES.keys()
    assert {str(quantization) for quantization in Quantization} <= QUANTIZATIONS.keys()
    assert DTYPES["float32"] < DTYPES["float16"] < DTYPES["bfloat16"]
    assert QUANTIZATIONS["none"] < QUANTIZATIONS["int8_weight_only"] < QUANTIZATIONS["int4_weight_only"]
    assert decide_epsilon("float32", "int8", 2.0) == pytest.approx(1.52)


def test_the_samples_are_in_the_wheel(tmp_path: Path) -> None:
    [wheel] = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    names = zipfile.ZipFile(wheel).namelist()
    for sample in load_samples():
        assert f"hotstart/engines/verify/samples/{sample.name}.txt" in names
