"""What the chart makes, whole, beside what it made when someone last looked: an unwanted change shows as a diff."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"
UPDATE = "HOTSTART_UPDATE_GOLDEN"


def without_crds(text: str) -> str:
    """The manifests but for the generated CRDs, which have a test of their own."""
    documents = text.split("\n---\n")
    return "\n---\n".join(document for document in documents if "/templates/crds/" not in document)


@pytest.mark.parametrize("name", ["default", "full"])
def test_the_chart_makes_what_the_golden_file_says(chart, values, name):
    made = without_crds(chart.text(values[name]))
    golden = GOLDEN / f"{name}.yaml"
    if os.environ.get(UPDATE) == "1":
        golden.write_text(made, encoding="utf-8")
    wanted = golden.read_text(encoding="utf-8") if golden.exists() else ""
    difference = "".join(
        difflib.unified_diff(wanted.splitlines(keepends=True), made.splitlines(keepends=True), str(golden), "the chart")
    )
    assert not difference, f"{difference}\nIf this is wanted: {UPDATE}=1 pytest tests/helm"


def test_the_same_values_make_the_same_text(chart, values):
    assert chart.text(values["full"]) == chart.text(values["full"])


@pytest.mark.parametrize("name", ["default", "full"])
def test_helm_lint_has_nothing_to_say(chart, values, name):
    done = chart.run("lint --strict --quiet", values[name])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout
