"""The CustomResourceDefinitions of both kinds, as plain values. Pure; `generate` writes them to files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hotstart.exchange.names import GROUP, VERSION
from hotstart.operator.api.base import RULES_KEY, Kind, Rule
from hotstart.operator.api.completion_model import CompletionModel, CompletionModelSpec
from hotstart.operator.api.engine import Engine, EngineSpec, EngineStatus
from hotstart.operator.api.status import CompletionModelStatus
from hotstart.operator.api.structural import make_structural_schema, make_validation
from pydantic import BaseModel


@dataclass(frozen=True, slots=True)
class Column:
    """One column of `kubectl get`; `priority` 1 shows it with -o wide only."""

    name: str
    kind: str
    path: str
    description: str
    priority: int = 0


@dataclass(frozen=True, slots=True)
class KindDefinition:
    """What a CRD says beside its schema."""

    kind: type[Kind]
    spec: type[BaseModel]
    status: type[BaseModel]
    plural: str
    singular: str
    short_names: tuple[str, ...]
    columns: tuple[Column, ...]
    name_max_length: int
    name_pattern: str
    scale: bool = False
    rules: tuple[Rule, ...] = ()
    """Rules over the whole object, its name included."""

    @property
    def file_name(self) -> str:
        """Name of the generated file."""
        return f"{GROUP}_{self.plural}.yaml"


def _condition(name: str, field: str) -> str:
    return f'.status.conditions[?(@.type=="{name}")].{field}'


_AGE = Column("Age", "date", ".metadata.creationTimestamp", "Time since creation.")
_READY = Column("Ready", "string", _condition("Ready", "status"), "Whether Ready is True.")
_REASON = Column("Reason", "string", _condition("Ready", "reason"), "Why, as one word.")

KINDS: tuple[KindDefinition, ...] = (
    KindDefinition(
        kind=CompletionModel,
        spec=CompletionModelSpec,
        status=CompletionModelStatus,
        plural="completionmodels",
        singular="completionmodel",
        short_names=("cmpl",),
        columns=(
            _READY,
            _REASON,
            Column("Replicas", "integer", ".status.readyReplicas", "Pods that are ready to serve."),
            Column("Engine", "string", ".status.engine.name", "Engine of the current revision."),
            Column("P95", "string", ".status.latency.value", "Latency at the SLO's percentile over the last window."),
            Column("SLO", "string", ".spec.slo.latency", "Latency to hold.", priority=1),
            Column("SLOMet", "string", _condition("SLOMet", "status"), "Whether the SLO is held.", priority=1),
            _AGE,
        ),
        # Names of pods, Services and labels are made from it, and 63 characters is all that they have.
        name_max_length=40,
        name_pattern="^[a-z]([-a-z0-9]*[a-z0-9])?$",
        scale=True,
    ),
    KindDefinition(
        kind=Engine,
        spec=EngineSpec,
        status=EngineStatus,
        plural="engines",
        singular="engine",
        short_names=("eng",),
        columns=(
            _READY,
            _REASON,
            Column("Phase", "string", ".status.phase", "Step of the build."),
            Column("Progress", "integer", ".status.percent", "Share of the build that is done (percent)."),
            Column("Size", "integer", ".status.sizeBytes", "Size in the store (bytes)."),
            Column("Runtime", "string", ".spec.runtime", "Program that runs the engine.", priority=1),
            _AGE,
        ),
        name_max_length=40,
        name_pattern="^[0-9a-f]{40}$",
        rules=(
            Rule(
                "engine-named-by-key",
                "self.spec.key.startsWith(self.metadata.name)",
                "the name of an Engine is the first 40 hex digits of spec.key",
                ".metadata.name",
            ),
        ),
    ),
)


def make_crd(definition: KindDefinition) -> dict[str, Any]:
    """The CustomResourceDefinition of one kind, as YAML-ready values in a fixed order."""
    kind = definition.kind.__name__
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{definition.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "categories": ["hotstart"],
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": definition.plural,
                "shortNames": list(definition.short_names),
                "singular": definition.singular,
            },
            "scope": "Namespaced",
            "versions": [_make_version(definition)],
        },
    }


def find_rules(definition: KindDefinition) -> dict[str, Mapping[str, str]]:
    """All CEL rules of a kind by their stable name. Raises ValueError where one name stands for two rules."""
    found: dict[str, Mapping[str, str]] = {rule.name: rule.as_schema() for rule in definition.rules}
    for model in (definition.spec, definition.status):
        for rule in _walk_rules(model.model_json_schema(by_alias=True)):
            if found.setdefault(rule["name"], rule) != rule:
                raise ValueError(f"two different rules are named {rule['name']}")
    return found


def _walk_rules(node: Any) -> Iterator[Mapping[str, str]]:
    if isinstance(node, dict):
        yield from node.get(RULES_KEY, ())
        for value in node.values():
            yield from _walk_rules(value)
    elif isinstance(node, list):
        for value in node:
            yield from _walk_rules(value)


def _make_version(definition: KindDefinition) -> dict[str, Any]:
    subresources: dict[str, Any] = {"status": {}}
    if definition.scale:
        subresources["scale"] = {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        }
    return {
        "name": VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [_make_column(column) for column in definition.columns],
        "schema": {"openAPIV3Schema": _make_root_schema(definition)},
        "subresources": subresources,
    }


def _make_column(column: Column) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": column.name,
        "type": column.kind,
        "jsonPath": column.path,
        "description": column.description,
    }
    return made | {"priority": column.priority} if column.priority else made


def _make_root_schema(definition: KindDefinition) -> dict[str, Any]:
    fields = definition.kind.model_fields
    spec = make_structural_schema(definition.spec) | {"description": fields["spec"].description}
    status = make_structural_schema(definition.status) | {"description": fields["status"].description}
    name = {"type": "string", "maxLength": definition.name_max_length, "pattern": definition.name_pattern}
    root: dict[str, Any] = {
        "type": "object",
        "description": " ".join((definition.kind.__doc__ or "").split()),
        "properties": {
            "apiVersion": {"type": "string", "description": f"Version of the API: {GROUP}/{VERSION}."},
            "kind": {"type": "string", "description": f"Kind of the object: {definition.kind.__name__}."},
            "metadata": {"type": "object", "properties": {"name": name}},
            "spec": spec,
            "status": status,
        },
        "required": ["spec"],
    }
    if definition.rules:
        root["x-kubernetes-validations"] = [make_validation(rule.as_schema()) for rule in definition.rules]
    return root
