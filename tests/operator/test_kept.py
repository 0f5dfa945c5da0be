"""The operator's answers to a builder that asks for what earlier builds of its namespace have kept."""

from __future__ import annotations

from typing import Any

import pytest
from hotstart.engines.accelerators import find_accelerator, make_platform
from hotstart.engines.key import engine_name, key_inputs, make_key
from hotstart.engines.recipe import EngineLimits, EngineRecipe
from hotstart.engines.toolchains import find_toolchain
from hotstart.exchange.messages import BuildPhase, BuildReport, KeptWish
from hotstart.exchange.names import API_VERSION
from hotstart.operator.api.engine import EngineSpec
from hotstart.operator.api.engine import Recipe as ApiRecipe
from hotstart.operator.api.model_spec import Accelerator, Checkpoint, Runtime
from hotstart.operator.reconcile.builds import BuildServer
from pydantic import ValidationError

from tests.operator.world import Operator, World

H100 = find_accelerator("NVIDIA-H100-80GB-HBM3")
assert H100 is not None
RECIPE = EngineRecipe(
    find_toolchain("tensorrt_llm", "LlamaForCausalLM", quantization="fp8"),
    "bfloat16",
    "fp8",
    tensor_parallel=2,
    limits=EngineLimits(64, 3840, 4096),
    platform=make_platform(H100),
)
DIGEST = "3c" * 32


def make_engine(recipe: EngineRecipe) -> dict[str, Any]:
    key = make_key(key_inputs(DIGEST, recipe))
    spec = EngineSpec(
        key=key,
        runtime=Runtime.TENSORRT_LLM,
        checkpoint=Checkpoint(uri="s3://models/llama/"),
        checkpoint_digest=DIGEST,
        tokenizer_digest=DIGEST,
        recipe=ApiRecipe.from_engine_recipe(recipe),
        accelerator=Accelerator(product=recipe.platform.gpu_product),
    )
    metadata = {"name": engine_name(key), "namespace": "team", "uid": "e1"}
    return {"apiVersion": API_VERSION, "kind": "Engine", "metadata": metadata, "spec": spec.to_api()}


def test_a_recipe_of_a_gpu_survives_the_api() -> None:
    assert ApiRecipe.from_engine_recipe(RECIPE).to_engine_recipe() == RECIPE


@pytest.mark.parametrize("way", ["get", "put"])
@pytest.mark.parametrize("what", ["timing-caches", "expectations"])
async def test_a_builder_gets_the_url_of_what_its_namespace_keeps(what: str, way: str) -> None:
    world = World()
    operator = Operator(world)
    operator.memory.namespaces["team"] = "ns-uid"
    builds: BuildServer = operator.exchange.builds
    engine = make_engine(RECIPE)
    report = BuildReport.model_validate(
        {
            "pod_uid": "p1",
            "engine_key": engine["spec"]["key"],
            "phase": BuildPhase.BUILDING,
            "wants_kept": {"what": what, "name": DIGEST, "way": way},
        }
    )
    answer = await builds._answer("team", engine, report)
    assert answer is not None and answer.kept is not None
    assert answer.kept.wish == report.wants_kept
    assert f"{what}/ns-uid/{DIGEST}" in answer.kept.url
    assert ("put" in answer.kept.url) == (way == "put")
    silent = report.model_copy(update={"wants_kept": None})
    assert await builds._answer("team", engine, silent) is None


@pytest.mark.parametrize("name", ["", "../../engines/x", "ab" * 19, "AB" * 20, "ab" * 40, "ab" * 20 + "/"])
def test_a_builder_cannot_name_what_is_not_kept(name: str) -> None:
    with pytest.raises(ValidationError, match="name"):
        KeptWish.model_validate({"what": "expectations", "name": name, "way": "get"})
