"""The CRDs on a real API server: strict fields, immutability, subresources, columns and `kubectl explain`."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hotstart.engines.key import engine_name
from hotstart.engines.recipe import CTRANSLATE2_TOOLCHAIN, EngineRecipe
from hotstart.operator.api import CompletionModel, CompletionModelStatus, Engine, Recipe

if TYPE_CHECKING:
    from conftest import ApiServer

pytestmark = pytest.mark.integration

API_VERSION = "hotstart.dev/v1alpha1"
KEY = "0123456789abcdef" * 4
MODEL: dict[str, Any] = {
    "apiVersion": API_VERSION,
    "kind": "CompletionModel",
    "metadata": {"name": "m"},
    "spec": {"checkpoint": {"uri": "s3://models/m/"}, "engine": {"runtime": "ctranslate2"}},
}
ENGINE: dict[str, Any] = {
    "apiVersion": API_VERSION,
    "kind": "Engine",
    "metadata": {"name": engine_name(KEY)},
    "spec": {
        "key": KEY,
        "runtime": "ctranslate2",
        "checkpoint": {"uri": "s3://models/m/"},
        "checkpointDigest": "1" * 64,
        "tokenizerDigest": "2" * 64,
        "recipe": Recipe.from_engine_recipe(EngineRecipe(CTRANSLATE2_TOOLCHAIN, "float32", "int8")).to_api(),
    },
}
STATUS: dict[str, Any] = {
    "observedGeneration": 1,
    "conditions": [
        {
            "type": "Ready",
            "status": "False",
            "observedGeneration": 1,
            "lastTransitionTime": "2030-01-31T18:00:00Z",
            "reason": "EngineBuilding",
            "message": "The engine is being built.",
        }
    ],
    "replicas": 2,
    "readyReplicas": 1,
    "selector": "hotstart.dev/model=m,hotstart.dev/role=serving",
    "revision": "abc",
    "plan": "rebuild: dtype changed",
    "engine": {"name": engine_name(KEY), "key": KEY, "revision": "abc"},
    "checkpoint": {
        "uri": "s3://models/m/",
        "digest": "1" * 64,
        "parameters": 134515008,
        "sizeBytes": 2**40,
        "files": 1,
    },
    "latency": {"percentile": 95, "value": "180ms", "window": "60s", "slo": "250ms"},
    "decisions": [
        {
            "time": "2030-01-31T18:00:00Z",
            "from": 1,
            "to": 2,
            "reason": "DemandRose",
            "message": "Demand rose to 1.7 requests in flight.",
            "inputs": {"inFlight": "1.7"},
        }
    ],
    "coldStart": {"pod": "m-abc-0-0", "totalMilliseconds": 2100, "phases": {"fetch": 400, "load": 900}},
    "builds": 1,
}


def create(api_server: ApiServer, namespace: str, value: dict[str, Any]) -> None:
    api_server.run_kubectl("-n", namespace, "create", "-f", "-", stdin=yaml.safe_dump(value))


def get(api_server: ApiServer, namespace: str, kind: str, name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(api_server.run_kubectl("-n", namespace, "get", kind, name, "-o", "json"))
    return value


def patch(api_server: ApiServer, namespace: str, what: str, change: dict[str, Any], *more: str) -> Any:
    arguments = ("-n", namespace, "patch", what, "--type=merge", "-p", json.dumps(change), *more)
    return api_server.try_kubectl(*arguments)


@pytest.fixture
def model(api_server: ApiServer, namespace: str) -> str:
    create(api_server, namespace, MODEL)
    return "completionmodel/m"


def test_an_unknown_field_is_refused_with_its_path_by_apply_and_by_server_side_apply(
    api_server: ApiServer, namespace: str
) -> None:
    text = yaml.safe_dump(MODEL | {"spec": MODEL["spec"] | {"serving": {"queue": {"maxRequest": 1}}}})
    for mode in ((), ("--server-side", "--field-manager=test")):
        done = api_server.try_kubectl("-n", namespace, "apply", *mode, "-f", "-", stdin=text)
        assert done.returncode != 0
        assert "spec.serving.queue.maxRequest" in done.stderr


def test_an_unknown_field_is_never_stored(api_server: ApiServer, namespace: str) -> None:
    text = yaml.safe_dump(MODEL | {"spec": MODEL["spec"] | {"warmPool": "h100"}})
    api_server.run_kubectl("-n", namespace, "create", "--validate=ignore", "-f", "-", stdin=text)
    assert "warmPool" not in get(api_server, namespace, "cmpl", "m")["spec"]


def test_an_engine_never_changes(api_server: ApiServer, namespace: str) -> None:
    create(api_server, namespace, ENGINE)
    engine = f"engine/{engine_name(KEY)}"
    changed = patch(api_server, namespace, engine, {"spec": {"checkpointDigest": "3" * 64}})
    assert changed.returncode != 0
    assert "spec: Invalid value" in changed.stderr
    assert "an Engine never changes" in changed.stderr
    assert patch(api_server, namespace, engine, {"metadata": {"labels": {"a": "b"}}}).returncode == 0


def test_what_the_types_write_as_an_engine_is_taken(api_server: ApiServer, namespace: str) -> None:
    written = Engine.from_api(ENGINE).to_api()
    written["metadata"].pop("namespace")
    create(api_server, namespace, written)
    stored = get(api_server, namespace, "engine", engine_name(KEY))
    assert Engine.from_api(stored).spec == Engine.from_api(ENGINE).spec


def test_the_status_of_an_engine_is_kept_whole(api_server: ApiServer, namespace: str) -> None:
    create(api_server, namespace, ENGINE)
    status = {
        "observedGeneration": 1,
        "phase": "Converting",
        "percent": 40,
        "etaSeconds": 12,
        "sizeBytes": 2**34,
        "location": "s3://hotstart/engines/u/k/",
        "manifestDigest": "4" * 64,
        "attempts": 2,
        "lastError": "out of memory",
        "builtAt": "2030-01-31T18:00:00Z",
        "buildSeconds": 31,
    }
    done = patch(api_server, namespace, f"engine/{engine_name(KEY)}", {"status": status}, "--subresource=status")
    assert done.returncode == 0, done.stderr
    stored = get(api_server, namespace, "eng", engine_name(KEY))
    assert stored["status"] == status
    assert Engine.from_api(stored).status.to_api().items() >= status.items()
    table = api_server.run_kubectl("-n", namespace, "get", "eng")
    assert re.split(r"\s{2,}", table.splitlines()[0].strip()) == [
        "NAME", "READY", "REASON", "PHASE", "PROGRESS", "SIZE", "AGE",
    ]  # fmt: skip
    assert "Converting" in table


def test_status_is_kept_whole_and_spec_is_not_touched_by_it(api_server: ApiServer, namespace: str, model: str) -> None:
    done = patch(api_server, namespace, model, {"status": STATUS, "spec": {"replicas": 9}}, "--subresource=status")
    assert done.returncode == 0, done.stderr
    stored = get(api_server, namespace, "cmpl", "m")
    assert stored["status"] == STATUS
    assert stored["spec"]["replicas"] == 1
    assert stored["metadata"]["generation"] == 1
    written = CompletionModelStatus.model_validate(stored["status"]).to_api()
    assert CompletionModel.from_api(stored).status == CompletionModelStatus.model_validate(written)


def test_what_the_types_write_as_status_is_taken(api_server: ApiServer, namespace: str, model: str) -> None:
    written = CompletionModelStatus.model_validate(STATUS).to_api()
    done = patch(api_server, namespace, model, {"status": written}, "--subresource=status")
    assert done.returncode == 0, done.stderr
    assert get(api_server, namespace, "cmpl", "m")["status"] == written


def test_a_plain_patch_does_not_reach_status(api_server: ApiServer, namespace: str, model: str) -> None:
    assert patch(api_server, namespace, model, {"status": STATUS}).returncode == 0
    assert "status" not in get(api_server, namespace, "cmpl", "m")


def test_two_conditions_of_one_type_are_refused(api_server: ApiServer, namespace: str, model: str) -> None:
    twice = {"status": {"conditions": STATUS["conditions"] * 2}}
    done = patch(api_server, namespace, model, twice, "--subresource=status")
    assert done.returncode != 0
    assert "Duplicate value" in done.stderr


def test_scale_reads_and_writes_replicas(api_server: ApiServer, namespace: str, model: str) -> None:
    assert patch(api_server, namespace, model, {"status": STATUS}, "--subresource=status").returncode == 0
    api_server.run_kubectl("-n", namespace, "scale", model, "--current-replicas=1", "--replicas=3")
    path = f"/apis/{API_VERSION}/namespaces/{namespace}/completionmodels/m/scale"
    scale = json.loads(api_server.run_kubectl("get", "--raw", path))
    assert scale["spec"] == {"replicas": 3}
    assert scale["status"] == {"replicas": 2, "selector": STATUS["selector"]}
    assert get(api_server, namespace, "cmpl", "m")["spec"]["replicas"] == 3


def test_scale_works_before_any_status_is_written(api_server: ApiServer, namespace: str, model: str) -> None:
    path = f"/apis/{API_VERSION}/namespaces/{namespace}/completionmodels/m/scale"
    assert json.loads(api_server.run_kubectl("get", "--raw", path))["spec"] == {"replicas": 1}


def test_the_columns_say_what_matters(api_server: ApiServer, namespace: str, model: str) -> None:
    assert patch(api_server, namespace, model, {"status": STATUS}, "--subresource=status").returncode == 0
    header, row = api_server.run_kubectl("-n", namespace, "get", "hotstart").strip().splitlines()
    assert re.split(r"\s{2,}", header.strip()) == ["NAME", "READY", "REASON", "REPLICAS", "ENGINE", "P95", "AGE"]
    assert row.split()[1:6] == ["False", "EngineBuilding", "1", engine_name(KEY), "180ms"]


def undescribed(node: dict[str, Any], path: str) -> list[str]:
    found: list[str] = []
    for name, field in node.get("properties", {}).items():
        here = f"{path}.{name}"
        if not field.get("description"):
            found.append(here)
        found += undescribed(field, here) + undescribed(field.get("items", {}), f"{here}[]")
    return found


@pytest.mark.parametrize("kind", ["CompletionModel", "Engine"])
def test_every_field_is_explained(kind: str, api_server: ApiServer) -> None:
    """`kubectl explain` prints what stands in this document."""
    document = json.loads(api_server.run_kubectl("get", "--raw", f"/openapi/v3/apis/{API_VERSION}"))
    schema = document["components"]["schemas"][f"dev.hotstart.v1alpha1.{kind}"]
    assert set(schema["properties"]) >= {"spec", "status"}
    parts = {name: part for name, part in schema["properties"].items() if name in ("spec", "status")}
    assert undescribed({"properties": parts}, kind) == []


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("cmpl.spec.slo.latency", "such as 250ms"),
        ("completionmodel.spec.engine.limits.inputTokens", "(tokens)"),
        ("eng.status.etaSeconds", "(seconds)"),
    ],
)
def test_kubectl_explains_with_units(path: str, words: str, api_server: ApiServer) -> None:
    assert words in " ".join(api_server.run_kubectl("explain", path).split())
