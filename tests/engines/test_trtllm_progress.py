"""The build's share from what the tool says: in order, mixed by ranks, and robust to anything else."""

from __future__ import annotations

from functools import reduce

from hotstart.engines.runtimes.tensorrt_llm.progress import (
    ALL_DONE,
    MILESTONES,
    RANK_DONE,
    BarProgress,
    BuildProgress,
    advance,
)
from hypothesis import given
from hypothesis import strategies as st

from tests.support.trtllm_log import rank_lines

LAST = "[11/24/2026-15:00:47] [TRT-LLM] [I] Total time of building all engines: 00:00:47"


def run(lines: list[str], ranks: int = 1) -> BuildProgress:
    return reduce(advance, lines, BuildProgress(ranks))


def test_a_whole_log_goes_from_nothing_to_all() -> None:
    state, shares = BuildProgress(1), []
    for line in (*rank_lines(0), LAST):
        state = advance(state, line)
        shares.append(state.share)
    assert shares == sorted(shares)
    assert shares[0] < 0.1
    assert shares[-2] == 0.99  # the tool has not said its last word
    assert shares[-1] == 1.0
    assert (state.host_peak, state.gpu_peak) == (40_310_990_000, 19386 * 1024**2)


def test_ranks_one_after_the_other_share_the_way() -> None:
    first = run(list(rank_lines(0)), ranks=2)
    assert 0.45 < first.share < 0.55
    both = run([*rank_lines(0), *rank_lines(1)], ranks=2)
    assert both.share == 0.99


def test_ranks_at_once_mix_their_lines() -> None:
    mixed = [line for pair in zip(rank_lines(0), rank_lines(1), strict=True) for line in pair]
    state, shares = BuildProgress(2), []
    for line in mixed:
        state = advance(state, line)
        shares.append(state.share)
    assert shares == sorted(shares)
    assert shares[-1] == 0.99


def test_bars_of_a_tool_that_has_no_words_are_its_progress() -> None:
    shares: list[float] = []
    bar = BarProgress(shares.append)
    for line in (
        "Loading: 40%|####      | 4/10 [00:04<00:06]",
        "a word",
        "50% of it",
        "Rank 1:  10%|#   | 1/10",
        "100%|##|",
    ):
        bar(line)
    assert shares == [0.4, 1.0]


milestones = st.sampled_from([words for words, _ in MILESTONES] + [RANK_DONE, ALL_DONE])
lines = st.lists(st.one_of(st.text(max_size=30), milestones, st.builds(str.__add__, st.text(max_size=9), milestones)))


@given(lines, st.integers(1, 8))
def test_no_line_makes_it_fall_or_leave_its_bounds(said: list[str], ranks: int) -> None:
    state = BuildProgress(ranks)
    for line in said:
        after = advance(state, line)
        assert 0 <= state.share <= after.share <= 1
        state = after
    assert (state.share == 1) == any(ALL_DONE in line for line in said)


@given(st.text(max_size=200))
def test_an_unknown_line_changes_nothing(line: str) -> None:
    known = (*(words for words, _ in MILESTONES), RANK_DONE, ALL_DONE, "Build phase peak memory", "memory allocators")
    if not any(words in line for words in known):
        assert advance(BuildProgress(2), line) == BuildProgress(2)
