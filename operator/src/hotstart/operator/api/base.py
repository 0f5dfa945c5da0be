"""What all kinds share: the base of the pydantic types, object metadata, and CEL rules declared beside the types.

Objects enter the operator through these types and nowhere else. What only one field concerns (type, range, form) is
checked here and by the API server alike, from one declaration. Rules across fields are CEL alone: the API server is the
only door to the store, and evaluates them before Hotstart sees the object.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from hotstart.exchange.names import API_VERSION
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

#: Key under which `rules` puts CEL rules into a JSON schema; the generator turns them into x-kubernetes-validations.
RULES_KEY = "x-hotstart-rules"


@dataclass(frozen=True, slots=True)
class Rule:
    """One CEL rule of a schema node.

    `name` is stable: examples/invalid and the documentation name rules by it. `message` is what the API server answers.
    `field_path` (relative to the node, with a leading dot) moves the error to the field that has to change.
    """

    name: str
    rule: str
    message: str
    field_path: str | None = None

    def as_schema(self) -> dict[str, str]:
        """The rule as the generator finds it in a JSON schema; all values are strings."""
        schema = {"name": self.name, "rule": self.rule, "message": self.message}
        return schema if self.field_path is None else schema | {"fieldPath": self.field_path}


def rules(*declared: Rule) -> dict[str, Any]:
    """CEL rules in the form that pydantic's `json_schema_extra` takes."""
    return {RULES_KEY: [rule.as_schema() for rule in declared]}


class ApiModel(BaseModel):
    """Base of every part of a kind that its writer must spell right: unknown fields are refused, but for `from_api`."""

    model_config = ConfigDict(
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
    )

    def to_api(self) -> dict[str, Any]:
        """Plain JSON values with the API's camelCase names; fields that are None are left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class StatusModel(ApiModel):
    """Base of status: fields that a newer operator wrote are ignored, so that a downgrade still reads every object."""

    model_config = ConfigDict(extra="ignore")


class ObjectMeta(StatusModel):
    """The part of Kubernetes' object metadata that decisions use."""

    name: str
    namespace: str = "default"
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: Mapping[str, str] = Field(default_factory=dict)
    annotations: Mapping[str, str] = Field(default_factory=dict)


class Kind(StatusModel):
    """Base of the two kinds: what stands at the top of every object."""

    api_version: str = API_VERSION
    metadata: ObjectMeta

    @classmethod
    def from_api(cls, obj: Mapping[str, Any]) -> Self:
        """Parse an object as the API server returned it. Raises pydantic.ValidationError naming each wrong field.

        The API server refuses what it does not know. Fields that it knows and this version does not are those of a
        newer one, and are ignored: an older leader reads on while its successor's kinds are there.
        """
        return cls.model_validate(obj, extra="ignore")


def make_text_type(rule_name: str, pattern: str, message: str, max_length: int, min_length: int = 1) -> Any:
    """A str type of one form. Here and at the API server it is refused with the same `message` (without the path).

    `pattern` must mean the same to Python's `re` and to RE2; it is anchored by its author.
    """
    compiled = re.compile(pattern)

    def check_form(value: str) -> str:
        if compiled.fullmatch(value) is None:
            raise ValueError(message)
        return value

    declared = Rule(rule_name, f"self.matches(r'{pattern}')", message)
    return Annotated[
        str,
        Field(min_length=min_length, max_length=max_length),
        AfterValidator(check_form),
        WithJsonSchema({"type": "string", "minLength": min_length, "maxLength": max_length, **rules(declared)}),
    ]
