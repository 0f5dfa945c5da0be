"""The CRDs come from the types, upgrade with the chart (templates, not `crds/`) and outlive it (`keep`)."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hotstart.operator.api import generate

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "helm" / "hotstart" / "templates" / "crds"
KEEP = {"helm.sh/resource-policy": "keep"}


def test_the_chart_holds_what_the_types_generate():
    assert generate.diff_files(FOLDER, generate.make_files(KEEP)) == ""
    assert {path.name for path in FOLDER.iterdir()} == set(generate.make_files())


def test_helm_renders_them_unchanged(rendered):
    made = {each["metadata"]["name"]: each for each in rendered if each["kind"] == "CustomResourceDefinition"}
    generated = [yaml.safe_load(text) for text in generate.make_files(KEEP).values()]
    assert made == {each["metadata"]["name"]: each for each in generated}
    assert all(each["metadata"]["annotations"] == KEEP for each in made.values())


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_nothing_in_them_is_a_template(path):
    assert "{{" not in path.read_text(encoding="utf-8")


def test_nothing_stands_where_helm_would_never_upgrade_it():
    assert not (ROOT / "helm" / "hotstart" / "crds").exists()
