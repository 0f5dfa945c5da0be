"""Whoever sees a reason finds it in the runbook, and the runbook speaks of no reason that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

from hotstart.engines import errors
from hotstart.operator.api import conditions

RUNBOOK = Path(__file__).resolve().parents[2] / "docs" / "runbook.md"


def explained():
    """The reasons in the first cell of each row."""
    rows = [line.split("|")[1] for line in RUNBOOK.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    return [word for cell in rows for word in re.findall(r"`(\w+)`", cell)]


def test_every_reason_is_explained_once():
    known = {str(reason) for reason in (*conditions.Reason, *errors.Reason)}
    assert sorted(explained()) == sorted(known)
