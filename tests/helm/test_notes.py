"""After the install, the next steps: the notes name what was really made."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

CHART = Path(__file__).resolve().parents[2] / "helm" / "hotstart"
WRAPPED = 'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: notes}\ndata:\n  text: {{ include "notes" . | quote }}\n'


@pytest.fixture
def notes(chart, tmp_path):
    """Renders the notes with a release `mine`. Only an install prints them, so they are wrapped into a manifest."""
    copied = tmp_path / "hotstart"
    shutil.copytree(CHART, copied)
    text = (copied / "templates" / "NOTES.txt").read_text(encoding="utf-8")
    (copied / "templates" / "_notes.tpl").write_text('{{ define "notes" }}' + text + "{{ end }}", encoding="utf-8")
    (copied / "templates" / "notes.yaml").write_text(WRAPPED, encoding="utf-8")

    def render(values):
        wrapped = replace(chart, folder=copied)
        manifests = wrapped.manifests(values, "--show-only", "templates/notes.yaml", release="mine")
        return manifests[0]["data"]["text"]

    return render


def test_the_notes_give_the_next_steps(notes, values):
    text = notes(values["default"])
    assert "kubectl -n hotstart-system get secret engine-store" in text
    assert "apply -f examples/minimal.yaml" in text
    assert "port-forward service/mine-hotstart-router 8080:8080" in text
    assert "/v1/completions" in text


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, "docs/network-policies.md"),
        ({"operator": {"watchNamespaces": ["team-a"]}}, "Only these namespaces are served: team-a."),
        ({"networkPolicies": {"enabled": False}}, "no NetworkPolicy was made"),
    ],
    ids=["all_namespaces", "some_namespaces", "no_policies"],
)
def test_the_notes_say_who_may_reach_what(notes, values, change, sentence):
    assert sentence in notes({**values["default"], **change})
