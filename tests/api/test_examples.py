"""Every example is taken and every bad one refused, by the types here and by a real API server.

The first line of a bad example says who refuses it: `# refused by: RULE OR FIELD: WORDS OF THE API SERVER`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hotstart.operator.api import CompletionModel, Engine
from hotstart.operator.api.crd import KINDS, find_rules
from pydantic import ValidationError

if TYPE_CHECKING:
    from conftest import ApiServer

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
GOOD = sorted(EXAMPLES.glob("*.yaml"))
BAD = sorted((EXAMPLES / "invalid").glob("*.yaml"))
KIND_TYPES = {"CompletionModel": CompletionModel, "Engine": Engine}
RULES = {name: rule for definition in KINDS for name, rule in find_rules(definition).items()}
#: Shown by a change of an object, which no single file can do: see test_api_server.
TRANSITION_RULES = {"engine-is-immutable"}
PREFIX = "# refused by: "


@dataclass(frozen=True)
class Refusal:
    """What a bad example says of itself: name of a rule or path of a field, and part of what the API server says."""

    cause: str
    words: str

    @property
    def field(self) -> str | None:
        return self.cause if self.cause.startswith(("spec.", "metadata.")) else None


def read_refusal(path: Path) -> Refusal:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    cause, separator, words = first.removeprefix(PREFIX).partition(": ")
    assert first.startswith(PREFIX) and separator, f"{path.name}: the first line is not '{PREFIX}RULE OR FIELD: WORDS'"
    return Refusal(cause, words)


def read_object(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return value


def stem(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", GOOD, ids=stem)
def test_a_good_example_is_read_and_comes_back_the_same(path: Path) -> None:
    model = CompletionModel.from_api(read_object(path))
    assert CompletionModel.from_api(model.to_api()) == model


def test_the_minimal_example_is_short() -> None:
    lines = [line for line in (EXAMPLES / "minimal.yaml").read_text().splitlines() if not line.startswith("#")]
    assert len(lines) <= 10


def test_the_full_example_sets_every_field() -> None:
    def missing(model: Any, path: str) -> list[str]:
        if not hasattr(model, "model_fields_set"):
            return []
        unset = [f"{path}.{name}" for name in type(model).model_fields if name not in model.model_fields_set]
        return unset + [
            found for name in model.model_fields_set for found in missing(getattr(model, name), f"{path}.{name}")
        ]

    assert missing(CompletionModel.from_api(read_object(EXAMPLES / "full.yaml")).spec, "spec") == []


@pytest.mark.parametrize("path", BAD, ids=stem)
def test_a_bad_example_names_a_rule_or_a_field(path: Path) -> None:
    refusal = read_refusal(path)
    if refusal.field is None:
        assert refusal.words in RULES[refusal.cause]["message"]


def test_every_rule_has_a_bad_example() -> None:
    assert set(RULES) - TRANSITION_RULES == {
        refusal.cause for refusal in map(read_refusal, BAD) if refusal.field is None
    }


@pytest.mark.parametrize("path", BAD, ids=stem)
def test_what_concerns_one_field_is_refused_by_the_types_too(path: Path) -> None:
    """Rules over several fields, ranges of durations and names of objects are the API server's alone."""
    value, refusal = read_object(path), read_refusal(path)
    kind = KIND_TYPES[value["kind"]]
    rule = RULES.get(refusal.cause, {}).get("rule", "")
    of_one_field = refusal.field is not None or (rule.startswith("self.matches(") and rule.endswith("')"))
    if of_one_field and refusal.field != "metadata.name":
        with pytest.raises(ValidationError):
            kind.model_validate(value)
    else:
        assert kind.model_validate(value).metadata.name == value["metadata"]["name"]


@pytest.mark.integration
@pytest.mark.parametrize("path", GOOD, ids=stem)
def test_the_api_server_takes_a_good_example(path: Path, api_server: ApiServer, namespace: str) -> None:
    value = read_object(path)
    value["metadata"]["namespace"] = namespace
    api_server.run_kubectl("apply", "-f", "-", stdin=yaml.safe_dump(value))
    stored = yaml.safe_load(
        api_server.run_kubectl("-n", namespace, "get", "cmpl", value["metadata"]["name"], "-o", "yaml")
    )
    assert CompletionModel.from_api(stored).spec == CompletionModel.from_api(value).spec


@pytest.mark.integration
@pytest.mark.parametrize("path", BAD, ids=stem)
def test_the_api_server_refuses_a_bad_example(path: Path, api_server: ApiServer, namespace: str) -> None:
    refusal = read_refusal(path)
    done = api_server.try_kubectl("-n", namespace, "apply", "-f", path)
    assert done.returncode != 0
    assert refusal.words in done.stderr
    if refusal.field is not None:
        assert refusal.field in done.stderr
    elif declared := RULES[refusal.cause].get("fieldPath"):
        assert f"{declared.removeprefix('.')}: " in done.stderr
