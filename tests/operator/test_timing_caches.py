"""The operator's answers to a builder that asks for its timing cache: by toolchain, GPU and namespace."""

from __future__ import annotations

from typing import Any

import pytest
from hotstart.engines.accelerators import find_accelerator, make_platform
from hotstart.engines.key import engine_name, key_inputs, make_key
from hotstart.engines.recipe import EngineLimits, EngineRecipe
from hotstart.engines.timing_caches import timing_cache_path
from hotstart.engines.toolchains import find_toolchain
from hotstart.exchange.messages import BuildPhase, BuildReport
from hotstart.exchange.names import API_VERSION
from hotstart.operator.api.engine import EngineSpec
from hotstart.operator.api.engine import Recipe as ApiRecipe
from hotstart.operator.api.model_spec import Accelerator, Checkpoint, Runtime
from hotstart.operator.reconcile.builds import BuildServer

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


@pytest.mark.parametrize("what", ["get", "put"])
async def test_a_builder_gets_the_url_of_its_namespaces_cache(what: str) -> None:
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
            "wants_timing_cache": what,
        }
    )
    answer = await builds._answer("team", engine, report)
    assert answer is not None
    path = timing_cache_path("ns-uid", RECIPE.toolchain, RECIPE.platform)
    assert path in (answer.timing_cache_get if what == "get" else answer.timing_cache_put)
    assert not (answer.timing_cache_put if what == "get" else answer.timing_cache_get)
    silent = report.model_copy(update={"wants_timing_cache": ""})
    assert await builds._answer("team", engine, silent) is None
