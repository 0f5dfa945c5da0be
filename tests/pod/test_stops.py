"""Stops are found in text, wherever tokens begin and end, and nothing that may become one is sent."""

from __future__ import annotations

import itertools

import pytest
from hotstart.engines.triton.completion.generation import TextAssembler
from hotstart.engines.triton.completion.stops import Scan, StopRules, base_indent, scan
from hotstart.exchange.messages import StopMode
from hypothesis import given
from hypothesis import strategies as st

TEXTS = st.text(alphabet="ab \r\n\tx;", max_size=40)
RULES = st.builds(
    StopRules,
    mode=st.sampled_from(StopMode),
    strings=st.lists(st.text(alphabet="ab \r\n;", min_size=1, max_size=4), max_size=3).map(tuple),
    base_indent=st.integers(0, 4),
)


def assemble(pieces: list[str], rules: StopRules) -> tuple[list[str], TextAssembler]:
    """Feeds one token a piece; the texts that were sent, the flushed rest last."""
    assembler = TextAssembler(rules, pieces.__getitem__)
    sent = []
    for token in range(len(pieces)):
        step = assembler.feed(token)
        sent.append(step.text)
        if step.over:
            break
    return [*sent, assembler.flush()], assembler


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("return x", None),
        ("return x\n", 8),
        ("return x\nprint()", 8),
        ("\n    return x\nprint()", 13),
        ("\r\n    return x\r\nprint()", 14),
        ("\n\n", None),
        ("", None),
    ],
)
def test_a_line_ends_at_the_newline_after_its_first_content(text: str, end: int | None) -> None:
    assert scan(text, StopRules(StopMode.LINE)).end == end


@pytest.mark.parametrize(
    ("text", "indent", "end"),
    [
        ("a = 1\n    b = 2\n", 4, None),
        ("a = 1\n    b = 2\n\n", 4, 15),
        ("a = 1\n    b = 2\n   \n    c", 4, 15),
        ("a = 1\ndef g", 4, 5),
        ("a = 1\n  ", 4, None),
        ("a = 1\n  x", 4, 5),
        ("a = 1\r\n    b = 2\r\n\r\n", 4, 16),
        ("a = 1\r\ndef g", 4, 5),
        ("\n    a\n    b\nprint()", 0, None),
        ("\n\n    a", 0, None),
    ],
)
def test_a_block_ends_at_a_blank_line_or_below_its_indentation(text: str, indent: int, end: int | None) -> None:
    assert scan(text, StopRules(StopMode.BLOCK, base_indent=indent)).end == end


def test_a_stop_string_over_token_boundaries_is_never_sent_in_part() -> None:
    sent, assembler = assemble(["ab", "c<", "|e", "nd|", ">d"], StopRules(strings=("<|end|>",)))
    assert sent == ["ab", "c", "", "", "", ""]
    assert (assembler.text, assembler.stopped) == ("abc", True)


@pytest.mark.parametrize("mode", [StopMode.LINE, StopMode.BLOCK])
def test_a_carriage_return_waits_for_what_follows_it(mode: StopMode) -> None:
    sent, assembler = assemble(["return x", "\r", "\n", "\r", "\ndef g"], StopRules(mode))
    assert "".join(sent) == assembler.text == "return x"
    assert assembler.stopped
    sent, assembler = assemble(["a", "\r", "b", "\r"], StopRules(mode))
    assert sent == ["a", "", "\rb", "", "\r"]


def test_without_a_mode_a_carriage_return_is_text() -> None:
    assert scan("a\r", StopRules()) == Scan(None, 2)


def test_what_only_looked_like_a_stop_string_is_sent_after_all() -> None:
    sent, assembler = assemble(["a<", "|en", "x"], StopRules(strings=("<|end|>",)))
    assert "".join(sent) == "a<|enx"
    assert not assembler.stopped


def test_the_first_of_several_stops_counts() -> None:
    assert scan("a;b\nc", StopRules(StopMode.LINE, (";",))) == Scan(1, 1)
    assert scan("a\nb;", StopRules(StopMode.LINE, (";",))) == Scan(1, 1)


def test_without_rules_all_text_is_safe() -> None:
    assert scan("anything\n\nat all", StopRules()) == Scan(None, 16)


@pytest.mark.parametrize(("prompt", "indent"), [("", 0), ("x = 1", 0), ("def f():\n    ", 4), ("\tif x:\n\t\ty", 2)])
def test_the_indentation_is_that_of_the_last_line(prompt: str, indent: int) -> None:
    assert base_indent(prompt) == indent


@given(text=TEXTS, rules=RULES, cuts=st.lists(st.integers(0, 40), max_size=8))
def test_what_is_sent_piece_by_piece_ends_at_the_first_stop(text: str, rules: StopRules, cuts: list[int]) -> None:
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:end] for start, end in itertools.pairwise(edges)]
    ends = [end for edge in edges if (end := scan(text[:edge], rules).end) is not None]
    sent, assembler = assemble(pieces, rules)
    expected = text[: ends[0]] if ends else text
    assert "".join(sent) == expected
    assert assembler.text == expected
    assert assembler.stopped == bool(ends)


@given(text=TEXTS, more=TEXTS, rules=RULES)
def test_no_later_text_takes_back_what_was_safe(text: str, more: str, rules: StopRules) -> None:
    before, after = scan(text, rules), scan(text + more, rules)
    assert before.safe <= len(text)
    if before.end is None:
        assert after.end is None or after.end >= before.safe
