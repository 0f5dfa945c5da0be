"""When a completion's text is complete, and how much of it may be sent before that. Pure.

Stops are found in text, not in tokens: a stop string may begin and end in the middle of tokens. Text that could still
become a stop is held back while streaming. A carriage return before a newline is part of it.

- ``line``: up to the newline that ends the first line with anything in it.
- ``block``: up to a blank line, or to a line indented less than the line in which the completion began.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hotstart.exchange.messages import StopMode


@dataclass(frozen=True)
class StopRules:
    """What ends a completion. ``base_indent``: indentation, in characters, of the prompt's last line."""

    mode: StopMode = StopMode.NONE
    strings: tuple[str, ...] = ()
    base_indent: int = 0


@dataclass(frozen=True)
class Scan:
    """``end``: where the text ends, or None; ``safe``: how many characters no later text can take back."""

    end: int | None
    safe: int


def base_indent(prompt: str) -> int:
    """The indentation of the line that the completion goes on, in characters."""
    line = prompt.rpartition("\n")[2]
    return len(line) - len(line.lstrip(" \t"))


def scan(text: str, rules: StopRules) -> Scan:
    """What ``rules`` say of ``text``, the whole completion so far."""
    ends = [end for find in FINDERS if (end := find(text, rules)) is not None]
    if ends:
        end = min(ends)
        return Scan(end, end)
    return Scan(None, min(hold(text, rules) for hold in HOLDS))


def line_end(text: str, newline: int) -> int:
    """Where the line ends that has its newline at this index."""
    return newline - text.endswith("\r", 0, newline)


def line_ends(text: str, rules: StopRules) -> int | None:
    if rules.mode is not StopMode.LINE:
        return None
    content = len(text) - len(text.lstrip())
    newline = text.find("\n", content)
    return line_end(text, newline) if newline >= 0 else None


def block_ends(text: str, rules: StopRules) -> int | None:
    if rules.mode is not StopMode.BLOCK:
        return None
    lines = text.split("\n")
    position = len(lines[0])
    for index, line in enumerate(lines[1:], start=1):
        complete = index < len(lines) - 1
        blank = not line.strip()
        indent = len(line) - len(line.lstrip(" \t"))
        if text[:position].strip() and ((blank and complete) or (not blank and indent < rules.base_indent)):
            return line_end(text, position)
        position += 1 + len(line)
    return None


def string_begins(text: str, rules: StopRules) -> int | None:
    found = [at for string in rules.strings if (at := text.find(string)) >= 0]
    return min(found) if found else None


def undecided_newline(text: str, rules: StopRules) -> int:
    """In a block, a newline and the white space after it may turn out to stand before its end."""
    if rules.mode is not StopMode.BLOCK:
        return len(text)
    newline = text.rfind("\n")
    if newline < 0 or text[newline:].strip() or not text[:newline].strip():
        return len(text)
    return line_end(text, newline)


def undecided_return(text: str, rules: StopRules) -> int:
    """Where newlines count, a carriage return at the end of the text may be part of one."""
    if rules.mode is StopMode.NONE:
        return len(text)
    return len(text) - text.endswith("\r")


def begun_string(text: str, rules: StopRules) -> int:
    """The end of the text may be the beginning of a stop string."""
    longest = 0
    for string in rules.strings:
        for length in range(min(len(string) - 1, len(text)), longest, -1):
            if text.endswith(string[:length]):
                longest = length
                break
    return len(text) - longest


FINDERS: tuple[Callable[[str, StopRules], int | None], ...] = (line_ends, block_ends, string_begins)
HOLDS: tuple[Callable[[str, StopRules], int], ...] = (undecided_newline, undecided_return, begun_string)
