"""Whoever sees a reason finds it in the runbook, and the runbook speaks of no reason that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

from hotstart.engines import errors
from hotstart.operator.api import conditions

ROOT = Path(__file__).resolve().parents[2]
RUNBOOK = ROOT / "docs" / "runbook.md"
DECLARED = {Path(module.__file__) for module in (conditions, errors)}


def explained():
    """The reasons in the first cell of each row."""
    rows = [line.split("|")[1] for line in RUNBOOK.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    return [word for cell in rows for word in re.findall(r"`(\w+)`", cell)]


def test_every_reason_is_explained_once():
    known = {str(reason) for reason in (*conditions.Reason, *errors.Reason)}
    assert sorted(explained()) == sorted(known)


def test_every_reason_is_given_by_some_program():
    sources = [path for part in ("operator", "engines") for path in (ROOT / part / "src").rglob("*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources if path not in DECLARED)
    words = {*re.findall(r"\bReason\.([A-Z_]+)\b", text), *re.findall(r"\"([A-Za-z]+)\"", text)}
    given = {str(reason) for reason in (*conditions.Reason, *errors.Reason) if {reason.name, str(reason)} & words}
    assert sorted({*explained()} - given) == []
