"""The generated CRDs: no drift, structural, described, and the command line that makes and checks them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from hotstart.operator.api import generate
from hotstart.operator.api.crd import KINDS, KindDefinition, find_rules, make_crd
from hotstart.operator.api.structural import NotStructuralError, find_undescribed, make_structural_schema
from pydantic import BaseModel, Field

ROOT = Path(__file__).resolve().parents[2]


def schema_of(definition: KindDefinition) -> dict[str, Any]:
    schema: dict[str, Any] = make_crd(definition)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def nodes(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield schema
    for child in schema.get("properties", {}).values():
        yield from nodes(child)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from nodes(schema[key])


def test_the_committed_crds_and_those_of_the_chart_are_those_of_the_types(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    stale = generate.main(["--check"])
    assert stale == 0, f"run: python -m hotstart.operator.api.generate\n{capsys.readouterr().out}"


def test_the_same_types_give_the_same_bytes() -> None:
    assert generate.make_files() == generate.make_files()


def test_check_shows_a_difference_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--output", str(tmp_path)]) == 0
    assert generate.main(["--check", "--output", str(tmp_path)]) == 0
    changed = tmp_path / "hotstart.dev_engines.yaml"
    changed.write_text(changed.read_text().replace("  scope: Namespaced", "  scope: Cluster"))
    capsys.readouterr()
    assert generate.main(["--check", "--output", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "-  scope: Cluster" in shown
    assert "+  scope: Namespaced" in shown
    assert "scope: Cluster" in changed.read_text()


def test_check_shows_a_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--check", "--output", str(tmp_path)]) == 1
    assert "+kind: CustomResourceDefinition" in capsys.readouterr().out


def test_the_chart_gets_the_same_crds_and_keeps_them(tmp_path: Path) -> None:
    plain, chart = tmp_path / "crds", tmp_path / "chart"
    arguments = ["--output", str(plain), "--helm", str(chart)]
    assert generate.main(arguments) == 0
    assert generate.main(["--check", *arguments]) == 0
    for path in chart.iterdir():
        text = path.read_text()
        assert "{{" not in text, "helm would read it as a template"
        in_chart = yaml.safe_load(text)
        assert in_chart["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        assert in_chart == yaml.safe_load((plain / path.name).read_text())
    (chart / "hotstart.dev_engines.yaml").unlink()
    assert generate.main(["--check", *arguments]) == 1


@pytest.mark.parametrize("definition", KINDS, ids=lambda definition: definition.plural)
class TestSchema:
    def test_every_field_has_a_description(self, definition: KindDefinition) -> None:
        undescribed = [path for path in find_undescribed(schema_of(definition)) if not path.startswith(".metadata")]
        assert undescribed == []

    def test_nothing_unknown_is_kept_and_nothing_floats(self, definition: KindDefinition) -> None:
        for node in nodes(schema_of(definition)):
            assert "x-kubernetes-preserve-unknown-fields" not in node
            assert node["type"] in {"object", "array", "string", "integer"}

    def test_every_text_and_list_of_spec_is_bounded(self, definition: KindDefinition) -> None:
        for node in nodes(schema_of(definition)["properties"]["spec"]):
            if node["type"] == "string":
                assert "maxLength" in node or "enum" in node, node["description"]
            if node["type"] == "array":
                assert "maxItems" in node, node["description"]

    def test_every_rule_has_one_name_and_stands_in_the_crd(self, definition: KindDefinition) -> None:
        named = {rule["rule"] for rule in find_rules(definition).values()}
        generated = {
            rule["rule"] for node in nodes(schema_of(definition)) for rule in node.get("x-kubernetes-validations", ())
        }
        assert generated == named

    def test_conditions_are_a_map_by_type(self, definition: KindDefinition) -> None:
        conditions = schema_of(definition)["properties"]["status"]["properties"]["conditions"]
        assert conditions["x-kubernetes-list-type"] == "map"
        assert conditions["x-kubernetes-list-map-keys"] == ["type"]


class _Floating(BaseModel):
    share: Annotated[float, Field(description="x")]


class _Union(BaseModel):
    value: Annotated[int | str, Field(description="x")]


class _Exclusive(BaseModel):
    value: Annotated[int, Field(gt=0, description="x")]


@pytest.mark.parametrize(
    ("model", "path", "cause"),
    [
        (_Floating, "_Floating.share", "floating-point"),
        (_Union, "_Union.value", "union of 2 types"),
        (_Exclusive, "_Exclusive.value", "exclusiveMinimum cannot be expressed"),
    ],
)
def test_what_no_crd_can_say_is_refused_with_its_path(model: type[BaseModel], path: str, cause: str) -> None:
    with pytest.raises(NotStructuralError, match=f"{path}: .*{cause}"):
        make_structural_schema(model)
