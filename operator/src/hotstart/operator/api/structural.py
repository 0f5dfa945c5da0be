"""Pydantic's JSON schema -> the structural schema that a CustomResourceDefinition takes. Pure.

Structural means: no references, no unions, one type at each node, rules outside of the tree of types. What cannot be
expressed so raises `NotStructuralError` with the path, when the CRDs are generated and not when they are applied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hotstart.operator.api.base import RULES_KEY
from pydantic import BaseModel

JsonSchema = dict[str, Any]

_INT32_MAX = 2_147_483_647
_DROPPED = frozenset(
    {"title", "additionalProperties", "const", "default", "description", "type", RULES_KEY, "properties"}
)
_KEPT = frozenset(
    {
        "enum",
        "format",
        "items",
        "maximum",
        "maxItems",
        "maxLength",
        "maxProperties",
        "minimum",
        "minItems",
        "minLength",
        "pattern",
        "required",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-list-type",
        "x-kubernetes-map-type",
    }
)


class NotStructuralError(ValueError):
    """A pydantic type has no structural schema; the message names the path of the field."""


def make_structural_schema(model: type[BaseModel]) -> JsonSchema:
    """The structural schema of one pydantic type. Raises NotStructuralError."""
    schema = model.model_json_schema(by_alias=True, mode="validation")
    return _convert(schema, schema.get("$defs", {}), model.__name__)


def find_undescribed(schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Paths of all fields of a structural schema that have no description."""
    for name, field in schema.get("properties", {}).items():
        here = f"{path}.{name}"
        if not field.get("description"):
            yield here
        yield from find_undescribed(field, here)
    if isinstance(items := schema.get("items"), dict):
        yield from find_undescribed(items, f"{path}[]")


def make_validation(rule: Mapping[str, str]) -> JsonSchema:
    """One entry of x-kubernetes-validations; the rule's name has no place there."""
    return {key: rule[key] for key in ("rule", "message", "fieldPath") if key in rule}


def _resolve(schema: JsonSchema, definitions: Mapping[str, JsonSchema], path: str) -> JsonSchema:
    """Replace a reference, or the union of one type and null, by that type; what stands beside it wins."""
    if "$ref" in schema:
        target = definitions[schema["$ref"].removeprefix("#/$defs/")]
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        return _resolve({**target, **beside}, definitions, path)
    if "anyOf" in schema:
        options = [option for option in schema["anyOf"] if option.get("type") != "null"]
        if len(options) != 1:
            raise NotStructuralError(f"{path}: a union of {len(options)} types; use one type")
        beside = {key: value for key, value in schema.items() if key != "anyOf"}
        return _resolve({**options[0], **beside}, definitions, path)
    return schema


def _convert(schema: JsonSchema, definitions: Mapping[str, JsonSchema], path: str) -> JsonSchema:
    schema = _resolve(schema, definitions, path)
    kind = schema.get("type")
    if not isinstance(kind, str):
        raise NotStructuralError(f"{path}: no single type")
    if kind == "number":
        raise NotStructuralError(f"{path}: a floating-point number; use an integer with a unit, or a string")
    if unknown := set(schema) - _KEPT - _DROPPED - {"$defs"}:
        raise NotStructuralError(f"{path}: {', '.join(sorted(unknown))} cannot be expressed in a CRD")
    result: JsonSchema = {"type": kind}
    if schema.get("description"):
        result["description"] = " ".join(schema["description"].split())
    result |= {key: schema[key] for key in sorted(_KEPT) if key in schema and key not in ("items", "required")}
    if kind == "integer":
        result.setdefault("format", "int32" if schema.get("maximum", _INT32_MAX + 1) <= _INT32_MAX else "int64")
    if kind == "array":
        result["items"] = _convert(_without_description(schema["items"]), definitions, f"{path}[]")
        result.setdefault("x-kubernetes-list-type", "atomic")
    if kind == "object":
        result |= _convert_object(schema, definitions, path)
    if declared := schema.get(RULES_KEY):
        result["x-kubernetes-validations"] = [make_validation(rule) for rule in declared]
    if "default" in schema and schema["default"] is not None:
        result |= _default_of(schema, result)
    return result


def _convert_object(schema: JsonSchema, definitions: Mapping[str, JsonSchema], path: str) -> JsonSchema:
    values = schema.get("additionalProperties")
    if isinstance(values, dict):
        limits = {"maxProperties": schema["maxProperties"]} if "maxProperties" in schema else {}
        return limits | {"additionalProperties": _convert(_without_description(values), definitions, f"{path}.*")}
    properties = {
        name: _convert(field, definitions, f"{path}.{name}") for name, field in schema.get("properties", {}).items()
    }
    required = [name for name in schema.get("required", []) if name in properties]
    return {"properties": properties} | ({"required": required} if required else {})


def _without_description(schema: JsonSchema) -> JsonSchema:
    return {key: value for key, value in schema.items() if key != "description"}


def _default_of(schema: JsonSchema, result: JsonSchema) -> JsonSchema:
    """An object's default holds those below it, since the API server tests it with the rules as it stands.

    Empty lists, maps and texts need no default.
    """
    if result["type"] == "object":
        fields = result.get("properties", {})
        default = {name: field["default"] for name, field in fields.items() if "default" in field}
    else:
        default = schema["default"]
    return {} if default in ("", [], {}) else {"default": default}
