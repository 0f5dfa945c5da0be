"""Completions with a seed: which token a chance falls on, and an engine that draws them without a second one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import ctranslate2
import numpy as np
import pytest
from hotstart.engines.triton.completion import engine as engine_module
from hotstart.engines.triton.completion.engine import CTranslate2Engine, read_facts
from hotstart.engines.triton.completion.options import RequestOptions
from hotstart.engines.triton.completion.sampling import choose_token
from hypothesis import given, settings
from hypothesis import strategies as st

LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=20).map(np.float32)
CHANCES = np.linspace(0.0, 1.0, 200, endpoint=False)


def sampled(**changes: object) -> RequestOptions:
    return RequestOptions(**{"max_tokens": 24, "temperature": 1.0, "seed": 1, **changes})  # type: ignore[arg-type]


@settings(deadline=None)
@given(LOGITS, st.floats(0.1, 2.0))
def test_tokens_are_drawn_as_often_as_likely(logits: np.ndarray, temperature: float) -> None:
    weights = np.exp(np.float64(logits) / temperature - max(np.float64(logits) / temperature))
    counts = Counter(choose_token(logits, sampled(temperature=temperature), chance) for chance in CHANCES)
    for token, share in enumerate(weights / weights.sum()):
        assert abs(counts[token] / len(CHANCES) - share) <= 2 / len(CHANCES)


@given(LOGITS, st.integers(1, 25), st.floats(0, 1, exclude_max=True))
def test_top_k_leaves_the_likeliest(logits: np.ndarray, top_k: int, chance: float) -> None:
    token = choose_token(logits, sampled(top_k=top_k), chance)
    assert np.sum(logits > logits[token]) < top_k


@given(LOGITS, st.floats(0.01, 1.0), st.floats(0, 1, exclude_max=True))
def test_top_p_leaves_the_fewest_that_reach_it(logits: np.ndarray, top_p: float, chance: float) -> None:
    token = choose_token(logits, sampled(top_p=top_p), chance)
    weights = np.exp(np.float64(logits) - max(np.float64(logits)))
    likelier = weights[logits > logits[token]].sum() / weights.sum()
    assert likelier < top_p or likelier == pytest.approx(top_p)


@pytest.fixture(scope="module")
def engine(engine_folder: Path) -> CTranslate2Engine:
    return CTranslate2Engine(engine_folder, read_facts(engine_folder), inter_threads=2, intra_threads=1)


def complete(engine: CTranslate2Engine, **changes: object) -> list[int]:
    tokens: list[int] = []

    def take(token: int) -> bool:
        tokens.append(token)
        return False

    engine.generate([5, 6, 7], sampled(**changes), take)
    return tokens


def test_a_seed_repeats_a_completion_and_another_changes_it(engine: CTranslate2Engine) -> None:
    first = complete(engine, seed=7)
    complete(engine, seed=None)  # what else runs changes nothing
    assert complete(engine, seed=7) == first
    assert len({tuple(complete(engine, seed=seed)) for seed in range(8)}) > 1
    assert 0 < len(first) <= 24


def test_the_likeliest_tokens_are_those_of_the_greedy_completion(engine: CTranslate2Engine) -> None:
    assert complete(engine, top_k=1) == complete(engine, temperature=0.0)


def test_a_long_completion_is_told_in_parts_that_bound_its_logits(
    engine: CTranslate2Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = complete(engine, top_k=1)
    monkeypatch.setattr(engine_module, "MOST_LOGITS_BYTES", 4 * 512 * 5)  # five steps of this vocabulary
    assert complete(engine, top_k=1) == whole


def test_no_second_engine_is_loaded(engine: CTranslate2Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ctranslate2, "Generator")
    assert complete(engine)


def test_a_cancelled_one_ends_at_its_next_token(engine: CTranslate2Engine) -> None:
    tokens: list[int] = []

    def take(token: int) -> bool:
        tokens.append(token)
        return False

    engine.generate([5, 6, 7], sampled(temperature=2.0), take, lambda: len(tokens) >= 3)
    assert 3 <= len(tokens) < 24


def test_what_the_listener_raises_ends_it(engine: CTranslate2Engine) -> None:
    def take(token: int) -> bool:
        raise ValueError("of the listener")

    with pytest.raises(ValueError, match="of the listener"):
        engine.generate([5, 6, 7], sampled(), take)
