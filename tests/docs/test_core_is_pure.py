"""What the import rules cannot see: a clock that hides in a type. Decisions take `now` as an argument."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

CORE = Path(__file__).resolve().parents[2] / "operator" / "src" / "hotstart" / "operator" / "core"
CLOCKS = {"now", "utcnow", "today"}


def clock_calls(source):
    """Lines on which a class is asked for the time, as in `datetime.now()`."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [
        call.lineno
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and call.func.attr in CLOCKS
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id in ("datetime", "date")
    ]


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda path: path.name)
def test_no_decision_reads_the_clock(path):
    assert clock_calls(path.read_text(encoding="utf-8")) == []


def test_the_check_finds_a_clock():
    assert clock_calls("from datetime import UTC, datetime\nlater = datetime.now(UTC)\n") == [2]
