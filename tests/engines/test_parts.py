"""Parts of a multipart upload: they cover the file, are asked for in small lots, and each answer has one meaning."""

from __future__ import annotations

import itertools

import pytest
from hotstart.engines.transfers.parts import (
    LONGEST_WAIT,
    LOT,
    MAX_REFUSALS,
    MAX_TRIES,
    PutOutcome,
    decide_put,
    decide_wanted,
    split_file,
    waits,
)
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(0, 10_000), st.integers(1, 700))
def test_parts_cover_the_file_once_and_in_order(size: int, part_size: int) -> None:
    parts = split_file("f", size, part_size)
    assert [part.number for part in parts] == list(range(1, len(parts) + 1))
    assert sum(part.size for part in parts) == size
    assert all(a.start + a.size == b.start for a, b in itertools.pairwise(parts))
    assert all(part.size == part_size for part in parts[:-1])
    assert len(parts) == 1 or parts[-1].size > 0


def test_wanted_are_the_next_ones_of_files_that_are_begun() -> None:
    parts = (*split_file("a", 40, 1), *split_file("b", 3, 1))
    assert decide_wanted(parts, begun=(), done=(), held=()) == ()
    first = decide_wanted(parts, begun={"a", "b"}, done=(), held=())
    assert [(want.path, want.number) for want in first] == [("a", n) for n in range(1, LOT + 1)]
    done = {("a", n) for n in range(1, 40)}
    assert [(w.path, w.number) for w in decide_wanted(parts, begun={"a", "b"}, done=done, held=())] == [
        *(("a", 40), ("b", 1), ("b", 2), ("b", 3))
    ]
    assert [w.path for w in decide_wanted(parts, begun={"b"}, done=done, held=())] == ["b"] * 3


def test_no_more_urls_are_asked_for_than_are_soon_used() -> None:
    parts = split_file("a", 40, 1)
    held = {("a", n) for n in range(1, LOT + 1)}
    assert decide_wanted(parts, begun={"a"}, done=(), held=held) == ()
    later = decide_wanted(parts, begun={"a"}, done={("a", 1), ("a", 3)}, held=held)
    assert [want.number for want in later] == [LOT + 1, LOT + 2]
    refused = decide_wanted(parts, begun={"a"}, done=(), held=held - {("a", 2)})
    assert [want.number for want in refused] == [2]


def test_a_file_that_is_begun_late_has_its_urls_before_those_behind_it() -> None:
    parts = (*split_file("a", 2, 1), *split_file("b", 40, 1))
    behind = {("b", n) for n in range(1, LOT + 1)}
    wanted = decide_wanted(parts, begun={"a", "b"}, done=(), held=behind)
    assert [(want.path, want.number) for want in wanted] == [("a", 1), ("a", 2)]


@pytest.mark.parametrize(
    ("status", "tries", "refusals", "outcome"),
    [
        (200, 1, 0, PutOutcome.DONE),
        (200, MAX_TRIES + 5, 0, PutOutcome.DONE),
        (403, 1, 1, PutOutcome.ASK_AGAIN),
        (400, 1, 1, PutOutcome.ASK_AGAIN),
        (403, 9, MAX_REFUSALS, PutOutcome.GIVE_UP),
        (503, 1, 0, PutOutcome.TRY_AGAIN),
        (429, 1, 0, PutOutcome.TRY_AGAIN),
        (None, 1, 0, PutOutcome.TRY_AGAIN),
        (None, MAX_TRIES, 0, PutOutcome.GIVE_UP),
        (500, MAX_TRIES, 0, PutOutcome.GIVE_UP),
        (404, 1, 0, PutOutcome.GIVE_UP),
        (301, 1, 0, PutOutcome.GIVE_UP),
    ],
)
def test_each_answer_has_one_meaning(status: int | None, tries: int, refusals: int, outcome: PutOutcome) -> None:
    assert decide_put(status, tries, refusals) is outcome


def test_waits_double_up_to_a_limit() -> None:
    assert list(itertools.islice(waits(), 8)) == [0.5, 1, 2, 4, 8, 16, LONGEST_WAIT, LONGEST_WAIT]
