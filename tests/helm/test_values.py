"""Bad values are refused before anything is made, with the value's path and what was wanted."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import yaml

CHART = Path(__file__).resolve().parents[2] / "helm" / "hotstart"

REFUSED = [
    ("unknown_top_level_name", {"replicas": 2}, "'replicas' not allowed"),
    ("misspelt_name", {"operator": {"replica": 2}}, "at '/operator': additional properties 'replica' not allowed"),
    (
        "unknown_name_of_the_store",
        {"store": {"secret": "x"}},
        "at '/store': additional properties 'secret' not allowed",
    ),
    ("text_for_a_number", {"router": {"replicas": "two"}}, "at '/router/replicas': got string, want integer"),
    ("no_replicas", {"operator": {"replicas": 0}}, "at '/operator/replicas': minimum: got 0, want 1"),
    (
        "text_for_a_list",
        {"operator": {"watchNamespaces": "team-a"}},
        "'/operator/watchNamespaces': got string, want array",
    ),
    ("key_without_end", {"operator": {"keyRotation": "0h"}}, "at '/operator/keyRotation': '0h' does not match pattern"),
    ("namespace_that_is_none", {"operator": {"watchNamespaces": ["Team_A"]}}, "at '/operator/watchNamespaces/0'"),
    (
        "same_namespace_twice",
        {"operator": {"watchNamespaces": ["a", "a"]}},
        "at '/operator/watchNamespaces': items at 0 and 1",
    ),
    (
        "pull_policy",
        {"image": {"pullPolicy": "always"}},
        "'/image/pullPolicy': value must be one of 'Always', 'IfNotPresent', 'Never'",
    ),
    ("empty_tag", {"image": {"tag": ""}}, "at '/image/tag'"),
    ("number_for_a_tag", {"image": {"tag": 1.1}}, "at '/image/tag': got number, want string"),
    ("service_type", {"router": {"service": {"type": "ExternalName"}}}, "at '/router/service/type'"),
    ("port", {"router": {"service": {"port": 70000}}}, "at '/router/service/port': maximum: got 70,000, want 65,535"),
    ("quantity", {"router": {"resources": {"limits": {"memory": "512 MB"}}}}, "at '/router/resources/limits/memory'"),
    (
        "unknown_resource",
        {"router": {"resources": {"limits": {"ram": "1Gi"}}}},
        "additional properties 'ram' not allowed",
    ),
    ("endpoint_without_scheme", {"store": {"endpoint": "s3.storage:9000"}}, "at '/store/endpoint'"),
    ("bucket_with_scheme", {"store": {"bucket": "s3://engines"}}, "at '/store/bucket'"),
    (
        "text_for_a_switch",
        {"networkPolicies": {"enabled": "yes"}},
        "at '/networkPolicies/enabled': got string, want boolean",
    ),
    (
        "no_secret",
        {"store": {"secretName": ""}},
        "store.secretName is empty: create a Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the release's "
        "namespace and set its name",
    ),
    ("no_bucket", {"store": {"bucket": ""}}, "store.bucket is empty: set it to the name of an existing bucket"),
]


def merge(base, change):
    merged = copy.deepcopy(base)
    for name, value in change.items():
        merged[name] = merge(merged[name], value) if isinstance(value, dict) and name in merged else value
    return merged


@pytest.mark.parametrize(("change", "sentence"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_bad_values_are_refused_with_their_path(chart, values, change, sentence):
    assert sentence in chart.refusal(merge(values["default"], change))


def test_every_value_is_in_the_schema_and_every_object_of_the_schema_is_closed():
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    declared = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))

    def check(part, node, path):
        node = schema["definitions"][node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node
        if not isinstance(part, dict) or "properties" not in node:
            return
        assert node["additionalProperties"] is False, path
        assert set(part) <= set(node["properties"]), path
        for name, value in part.items():
            check(value, node["properties"][name], f"{path}/{name}")

    check(declared, schema, "")
    assert set(schema["properties"]) == {*declared, "global"}


def test_the_full_values_name_every_value(values):
    """So that the golden file shows what each of them does."""
    declared = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))

    def names(part, prefix=""):
        for name, value in part.items():
            yield f"{prefix}{name}"
            if isinstance(value, dict) and name not in ("resources", "nodeSelector"):
                yield from names(value, f"{prefix}{name}.")

    assert set(names(values["full"])) == set(names(declared))


def test_the_chart_works_as_a_dependency_of_another(chart, values):
    assert chart.manifests({**values["default"], "global": {"anything": 1}})
