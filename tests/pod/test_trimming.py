"""A long prompt keeps its end, and its start while it grows."""

from __future__ import annotations

import pytest
from hotstart.engines.triton.completion.trimming import (
    STEPS_IN_LIMIT,
    decide_end,
    decide_start,
    find_line_starts,
    find_whole,
)
from hypothesis import given
from hypothesis import strategies as st

LINES = st.lists(st.integers(1, 60), min_size=1, max_size=60)  # lengths of lines in tokens
LIMITS = st.integers(1, 200)


def starts_of(lines: list[int]) -> list[int]:
    return [sum(lines[:index]) for index in range(len(lines))]


def test_a_prompt_within_the_limit_is_left_alone() -> None:
    assert decide_start(96, 96, [0, 50]) == 0


def test_the_cut_is_at_a_line_and_in_steps_of_a_quarter() -> None:
    starts = starts_of([10] * 20)
    assert [decide_start(tokens, 40, starts) for tokens in (41, 50, 51, 60, 61)] == [10, 10, 20, 20, 30]


def test_a_line_longer_than_a_step_is_cut_in_its_middle() -> None:
    assert decide_start(100, 40, [0]) == 60


@given(lines=LINES, limit=LIMITS)
def test_what_is_left_is_within_the_limit_and_not_little(lines: list[int], limit: int) -> None:
    tokens = sum(lines)
    start = decide_start(tokens, limit, starts_of(lines))
    left = tokens - start
    assert 0 < left <= limit or tokens == 0
    if tokens > limit:
        assert left >= limit - 2 * max(1, limit // STEPS_IN_LIMIT)


@given(lines=LINES, limit=LIMITS, more=st.integers(0, 50))
def test_the_start_stays_while_the_prompt_grows_within_a_step(lines: list[int], limit: int, more: int) -> None:
    tokens = sum(lines)
    step = max(1, limit // STEPS_IN_LIMIT)
    grown = tokens + more
    if tokens > limit and -(-(tokens - limit) // step) == -(-(grown - limit) // step):
        starts = starts_of(lines)
        assert decide_start(tokens, limit, starts) == decide_start(grown, limit, [*starts, tokens])


@given(lines=LINES, limit=LIMITS, more=st.integers(1, 300))
def test_a_growing_prompt_never_gets_an_earlier_start(lines: list[int], limit: int, more: int) -> None:
    starts = starts_of(lines)
    tokens = sum(lines)
    assert decide_start(tokens + more, limit, [*starts, tokens]) >= decide_start(tokens, limit, starts)


@given(lines=LINES, limit=st.integers(0, 200))
def test_a_suffix_keeps_its_start_within_the_limit(lines: list[int], limit: int) -> None:
    tokens = sum(lines)
    kept = decide_end(tokens, limit, starts_of(lines))
    assert kept <= min(tokens, limit)
    assert kept == tokens or kept >= limit // 2


@pytest.mark.parametrize(
    ("text", "pieces", "starts"),
    [
        ("a\nb\n", ["a", "\n", "b", "\n"], [0, 2]),
        ("a\n    b", ["a", "\n   ", " b"], [0, 1]),
        ("a\n\nb", ["a", "\n\n", "b"], [0, 2]),
        ("ab", ["a", "b"], [0]),
    ],
)
def test_line_starts_are_found_whatever_the_tokens(text: str, pieces: list[str], starts: list[int]) -> None:
    offsets = []
    position = 0
    for piece in pieces:
        offsets.append((position, position + len(piece)))
        position += len(piece)
    assert find_line_starts(text, offsets) == starts


@pytest.mark.parametrize(("end", "whole"), [(0, 0), (1, 1), (2, 1), (3, 1), (4, 4), (5, 5)])
def test_a_character_of_several_tokens_is_kept_whole_or_not_at_all(end: int, whole: int) -> None:
    assert find_whole([(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)], end) == whole
