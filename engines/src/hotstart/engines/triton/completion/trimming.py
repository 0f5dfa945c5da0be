"""Where a prompt that is too long is cut: at line boundaries, in steps. Pure.

While a user types, the prompt grows at its end. A cut that moved with each token would change the prompt's start each
time, and with it everything an engine could reuse. So the cut moves in steps of a quarter of the limit: within a step
the start stays as it is. Of a suffix the start is kept, so its end is cut likewise.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

STEPS_IN_LIMIT = 4


def decide_start(tokens: int, limit: int, line_starts: Sequence[int]) -> int:
    """How many tokens to drop from the start of ``tokens``, so that at most ``limit`` (> 0) are left.

    ``line_starts`` are the indices of tokens that begin a line, ascending. The first line start within one step is
    taken; where a line is longer than a step, the cut is in the middle of it. At least half of ``limit`` is kept.
    """
    if tokens <= limit:
        return 0
    step = max(1, limit // STEPS_IN_LIMIT)
    least = -(-(tokens - limit) // step) * step
    index = bisect_left(line_starts, least)
    if index < len(line_starts) and line_starts[index] < least + step:
        return min(line_starts[index], tokens - 1)
    return least


def decide_end(tokens: int, limit: int, line_starts: Sequence[int]) -> int:
    """How many tokens of a suffix to keep, at most ``limit`` (>= 0): up to a line's end if that keeps half of it."""
    if tokens <= limit:
        return tokens
    index = bisect_right(line_starts, limit) - 1
    if index >= 0 and line_starts[index] >= max(1, limit // 2):
        return line_starts[index]
    return limit


def find_line_starts(text: str, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """The indices of tokens that begin a line: after a newline, or holding it and the line's indentation.

    ``offsets`` are each token's first and last character (exclusive) in ``text``.
    """
    found = []
    for index, (start, end) in enumerate(offsets):
        after_newline = start == 0 or text[start - 1] == "\n"
        holds_newline = end > start + 1 and text[start] == "\n" and text[start + 1 : end].strip("\n") != ""
        if after_newline or holds_newline:
            found.append(index)
    return found


def find_whole(offsets: Sequence[tuple[int, int]], end: int) -> int:
    """How many of the first ``end`` tokens to keep, so that the last one does not end within a character."""
    while 0 < end < len(offsets) and offsets[end][0] < offsets[end - 1][1]:
        end -= 1
    return end
