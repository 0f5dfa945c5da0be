"""The kinds as Python values: defaults, round trips, and what is refused without an API server."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import yaml
from hotstart.engines import errors as engine_errors
from hotstart.engines import recipe as engine_recipe
from hotstart.engines.key import key_inputs, make_key
from hotstart.operator.api import CompletionModel, Condition, ConditionType, Engine, Reason, Recipe
from hotstart.operator.api.crd import KINDS, make_crd
from hotstart.operator.api.model_spec import Dtype, EngineSettings, Quantization
from pydantic import ValidationError

MINIMAL: dict[str, Any] = {
    "apiVersion": "hotstart.dev/v1alpha1",
    "kind": "CompletionModel",
    "metadata": {"name": "m", "namespace": "n", "uid": "u", "generation": 3, "managedFields": []},
    "spec": {"checkpoint": {"uri": "s3://models/m/"}, "engine": {"runtime": "ctranslate2"}},
}


def with_defaults(schema: dict[str, Any], value: Any) -> Any:
    """What the API server does with defaults of a structural schema."""
    if schema["type"] != "object" or "properties" not in schema:
        return value
    filled = {name: field["default"] for name, field in schema["properties"].items() if "default" in field} | value
    return {name: with_defaults(schema["properties"][name], part) for name, part in filled.items()}


def test_the_defaults_of_the_types_are_those_of_the_crd() -> None:
    crd = make_crd(KINDS[0])
    spec_schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    stored = {**MINIMAL, "spec": with_defaults(spec_schema, MINIMAL["spec"])}
    assert stored["spec"]["scaling"]["maxReplicas"] == 1
    assert CompletionModel.from_api(stored).spec == CompletionModel.from_api(MINIMAL).spec


def test_metadata_is_read_and_the_rest_of_it_ignored() -> None:
    metadata = CompletionModel.from_api(MINIMAL).metadata
    assert (metadata.name, metadata.namespace, metadata.uid, metadata.generation) == ("m", "n", "u", 3)


@pytest.mark.parametrize("path", ["spec", "spec.checkpoint", "spec.engine"])
def test_an_unknown_field_of_spec_is_refused_with_its_path_unless_the_api_server_took_it(path: str) -> None:
    broken = yaml.safe_load(yaml.safe_dump(MINIMAL))
    place = broken
    for name in path.split("."):
        place = place[name]
    place["warmPool"] = "h100"
    with pytest.raises(ValidationError) as refused:
        CompletionModel.model_validate(broken)
    assert refused.value.errors()[0]["loc"] == (*path.split("."), "warmPool")
    assert CompletionModel.from_api(broken) == CompletionModel.from_api(MINIMAL), "the API server is the strict door"


def test_status_of_a_newer_operator_is_read() -> None:
    newer = {**MINIMAL, "status": {"observedGeneration": 2, "warmPods": 4}}
    assert CompletionModel.from_api(newer).status.observed_generation == 2


def test_another_kind_is_refused() -> None:
    with pytest.raises(ValidationError, match="kind"):
        Engine.from_api(MINIMAL)


@pytest.mark.parametrize(
    ("settings", "dtype", "quantization"),
    [
        ({"runtime": "ctranslate2"}, Dtype.FLOAT32, Quantization.FLOAT32),
        ({"runtime": "ctranslate2", "quantization": "int8"}, Dtype.FLOAT32, Quantization.INT8),
        ({"runtime": "tensorrt_llm"}, Dtype.FLOAT16, Quantization.NONE),
        ({"runtime": "tensorrt_llm", "dtype": "bfloat16", "quantization": "fp8"}, Dtype.BFLOAT16, Quantization.FP8),
    ],
)
def test_what_is_left_out_takes_the_words_of_its_runtime(
    settings: dict[str, str], dtype: Dtype, quantization: Quantization
) -> None:
    engine = EngineSettings.model_validate(settings)
    assert (engine.recipe_dtype, engine.recipe_quantization) == (dtype, quantization)


@pytest.mark.parametrize(
    "recipe",
    [
        engine_recipe.EngineRecipe(engine_recipe.CTRANSLATE2_TOOLCHAIN, "float32", "int8"),
        engine_recipe.EngineRecipe(
            toolchain=engine_recipe.Toolchain("trtllm", 2, "tensorrt_llm", "1.0.0", (("tensorrt", "10.14.1.48"),)),
            dtype="bfloat16",
            quantization="fp8",
            tensor_parallel=2,
            limits=engine_recipe.EngineLimits(64, 3840, 4096),
            platform=engine_recipe.Platform("arm64", "NVIDIA-GH200-480GB", "90", "96GB"),
        ),
    ],
)
def test_a_recipe_keeps_its_key_on_its_way_through_the_api(recipe: engine_recipe.EngineRecipe) -> None:
    through = Recipe.model_validate(Recipe.from_engine_recipe(recipe).to_api()).to_engine_recipe()
    assert through == recipe
    assert make_key(key_inputs("0" * 64, through)) == make_key(key_inputs("0" * 64, recipe))


def test_each_part_of_the_recipe_has_a_place_in_the_api() -> None:
    names = {field.name for field in dataclasses.fields(engine_recipe.EngineRecipe)}
    assert names == set(Recipe.model_fields)


def test_a_condition_is_written_as_kubernetes_writes_its_own() -> None:
    condition = Condition.model_validate(
        {
            "type": ConditionType.READY,
            "status": "True",
            "observed_generation": 3,
            "last_transition_time": "2030-01-31T18:00:00Z",
            "reason": Reason.READY,
        }
    )
    assert condition.to_api() == {
        "type": "Ready",
        "status": "True",
        "observedGeneration": 3,
        "lastTransitionTime": "2030-01-31T18:00:00Z",
        "reason": "Ready",
        "message": "",
    }


def test_every_reason_is_one_word_that_a_condition_takes() -> None:
    for reason in Reason:
        Condition(type="Ready", status="False", last_transition_time="2030-01-31T18:00:00Z", reason=reason)  # type: ignore[arg-type]


def test_the_reasons_of_builder_and_pod_agent_are_reasons_of_the_api() -> None:
    assert {reason.value for reason in engine_errors.Reason} <= {reason.value for reason in Reason}
