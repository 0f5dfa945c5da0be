"""The engine that a model on GPUs needs: its converter, its platform, and what is refused before a GPU is asked for."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from hotstart.engines.builder.inspect import make_result
from hotstart.engines.builder.termination import make_result_message
from hotstart.engines.checkpoints.checkpoint import ModelFacts, count_parameters
from hotstart.engines.checkpoints.mpt_config import MptFacts
from hotstart.engines.checkpoints.upstream_config import UpstreamFacts
from hotstart.operator.api import CompletionModel, CompletionModelSpec
from hotstart.operator.api.status import CheckpointStatus
from hotstart.operator.core.checkpoint import read_network, read_result
from hotstart.operator.core.jobs import Failure
from hotstart.operator.core.recipe import WantedEngine, decide_wanted_engine, make_sizes

from tests.operator.doubles import SPEC
from tests.operator.gpu_models import A100, REPLIT, apply_replit, gpu_engine
from tests.operator.world import World


def spec_of(**engine) -> CompletionModelSpec:
    return CompletionModelSpec.model_validate({**SPEC, "engine": gpu_engine(**engine)})


def checkpoint_of(**changes) -> CheckpointStatus:
    facts = {**REPLIT["facts"], **changes.pop("facts", {})}
    result = {**REPLIT, **changes, "facts": facts}
    return CheckpointStatus(
        digest=result["digest"],
        architecture=result["architecture"],
        format=result["format"],
        parameters=result["parameters"],
        network=read_network(result),
    )


def wanted_of(checkpoint: CheckpointStatus | None = None, **engine) -> WantedEngine:
    found = decide_wanted_engine(spec_of(**engine), checkpoint or checkpoint_of())
    assert isinstance(found, WantedEngine), found
    return found


def failure_of(checkpoint: CheckpointStatus | None = None, **engine) -> Failure:
    found = decide_wanted_engine(spec_of(**engine), checkpoint or checkpoint_of())
    assert isinstance(found, Failure), found
    return found


@pytest.mark.parametrize(
    ("architecture", "converter"),
    [
        ("MPTForCausalLM", "hotstart-mpt"),
        ("LlamaForCausalLM", "/app/examples/models/core/llama/convert_checkpoint.py"),
        ("Starcoder2ForCausalLM", "/app/examples/models/core/gpt/convert_checkpoint.py"),
    ],
)
def test_the_converter_is_the_network_s(architecture, converter):
    assert wanted_of(checkpoint_of(architecture=architecture)).recipe.toolchain.converter == converter


def test_the_form_of_the_files_decides_too():
    assert wanted_of(checkpoint_of(format="tensorrt_llm")).recipe.toolchain.converter == "none"
    found = failure_of(checkpoint_of(architecture="LlamaForCausalLM", format="gguf"))
    assert found.reason == "UnsupportedArchitecture" and "gguf" in found.message and not found.retryable
    assert failure_of(quantization="fp8").reason == "UnsupportedRecipe", "no calibration loads MPT"


def test_the_platform_is_of_the_spec_and_the_table():
    platform = wanted_of().recipe.platform
    assert (platform.gpu_product, platform.gpu_sm, platform.gpu_memory) == ("NVIDIA-H100-80GB-HBM3", "sm_90", "80GiB")
    part = wanted_of(accelerator={"product": A100, "migProfile": "3g.40gb"}).recipe.platform
    assert (part.gpu_product, part.gpu_sm, part.gpu_memory) == (A100, "sm_80", "3g.40gb")


def test_a_partition_has_one_key_under_either_mig_strategy():
    mixed = wanted_of(accelerator={"product": A100, "migProfile": "3g.40gb"})
    single = wanted_of(accelerator={"product": f"{A100}-MIG-3g.40gb"})
    assert mixed.key == single.key


def test_toolchain_and_gpu_are_in_the_key():
    assert len({wanted_of().key, wanted_of(product=A100).key, wanted_of(tensorParallel=2).key}) == 3
    libraries = dict(wanted_of().recipe.toolchain.libraries)
    assert libraries["tensorrt"] == "10.14.1.48"
    assert wanted_of().recipe.toolchain.runtime_version == "1.2.1"


HEADS = {"hidden": 3072, "heads": 24, "kvHeads": 8, "headDim": 128}
SPLITS = [
    ("two ranks", {}, {"tensorParallel": 2}, ""),
    ("heads that many do not divide", {"heads": 71, "kvHeads": 1}, {"tensorParallel": 2}, "with 71 attention heads"),
    ("key heads that do not go round", {"heads": 24, "kvHeads": 6}, {"tensorParallel": 4}, "6 key-value heads"),
    ("a report of before", {"heads": 0}, {"tensorParallel": 7}, ""),
    ("layers of MPT quantized", {}, {"quantization": "int8_weight_only"}, ""),
    (
        "layers that are too narrow",
        {"hidden": 96, "heads": 4, "kvHeads": 4, "headDim": 24},
        {"quantization": "int4_weight_only"},
        "multiples of 64",
    ),
]


@pytest.mark.parametrize(("facts", "engine", "words"), [case[1:] for case in SPLITS], ids=[case[0] for case in SPLITS])
def test_a_network_that_cannot_be_split_so_is_refused_before_a_build(facts, engine, words):
    refusal = wanted_of(checkpoint_of(facts={**HEADS, **facts}), **engine).refusal
    assert (refusal is not None) == bool(words)
    if refusal is not None:
        assert refusal.reason == "UnsupportedRecipe" and words in refusal.message and not refusal.retryable


def test_an_unknown_network_gets_the_list_of_what_is_known():
    found = failure_of(checkpoint_of(architecture="MambaForCausalLM"))
    assert found.reason == "UnsupportedArchitecture"
    assert "MambaForCausalLM" in found.message and "Qwen2ForCausalLM" in found.message


def test_an_unknown_gpu_gets_the_list_of_what_is_known():
    found = failure_of(product="H100")
    assert found.reason == "UnsupportedRecipe"
    assert "'H100'" in found.message and "nvidia.com/gpu.product" in found.message
    assert "NVIDIA-H100-80GB-HBM3" in found.message


def test_a_partition_that_the_gpu_does_not_have():
    found = failure_of(accelerator={"product": A100, "migProfile": "1g.12gb"})
    assert found.reason == "AcceleratorMismatch"
    assert "1g.12gb" in found.message and "1g.10gb" in found.message
    whole = failure_of(accelerator={"product": "NVIDIA-L4", "migProfile": "1g.12gb"})
    assert "cannot be partitioned" in whole.message


def test_a_gpu_too_old_and_a_format_that_it_lacks():
    assert "SM 80" in failure_of(product="Tesla-T4").message
    assert "fp8" in failure_of(product=A100, quantization="fp8").message


def test_what_cannot_fit_is_refused_with_the_arithmetic():
    refusal = wanted_of(product="NVIDIA-A10", limits={"batchSize": 64, "inputTokens": 3840, "sequenceTokens": 4096})
    assert refusal.refusal is None, "replit-code fits 24 GB"
    large = checkpoint_of(parameters=70_000_000_000, facts={"layers": 80, "hidden": 8192, "intermediate": 28672})
    found = wanted_of(large).refusal
    assert found is not None and found.reason == "DoesNotFit" and not found.retryable
    assert "Needs " in found.message and "GiB" in found.message and "weights" in found.message


def test_four_gpus_hold_what_one_does_not():
    large = checkpoint_of(parameters=70_000_000_000, facts={"layers": 80, "hidden": 8192, "intermediate": 28672})
    assert wanted_of(large, tensorParallel=4).refusal is None


def test_sequences_beyond_the_checkpoint_s_context():
    limits = {"batchSize": 8, "inputTokens": 4096, "sequenceTokens": 8192}
    found = wanted_of(limits=limits).refusal
    assert found is not None and found.reason == "UnsupportedRecipe"
    assert "8192" in found.message and "4096" in found.message and "sequenceTokens" in found.message
    assert wanted_of(checkpoint_of(facts={"contextLength": 8192}), limits=limits).refusal is None


def test_without_sizes_nothing_is_refused_and_nothing_promised():
    found = decide_wanted_engine(spec_of(), CheckpointStatus(digest="ab" * 32, architecture="BloomForCausalLM"))
    assert isinstance(found, WantedEngine)
    assert (found.memory, found.refusal) == (None, None)


#: What the builder's own types say of three networks.
NETWORKS = {
    "mpt": MptFacts("MPTForCausalLM", 32, 3072, 12288, 24, 8, 128, 32768, 4096),
    "llama": ModelFacts("LlamaForCausalLM", 30, 576, 1536, 9, 3, 64, 49152, 2048, 1e-5, 1e4, tied_embeddings=True),
    "upstream": UpstreamFacts("BloomForCausalLM", 24, 1024, 4096, 16, 16, 64, 250880, 0, True, 559214592),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_an_inspection_says_is_all_that_the_memory_plan_needs(name):
    facts = NETWORKS[name]
    checkpoint = SimpleNamespace(facts=facts, format="safetensors")
    choice = SimpleNamespace(size=6_644_846_592, files=("a", "b"))
    prepared = SimpleNamespace(
        checkpoint=checkpoint, choice=choice, checkpoint_digest="ab" * 32, tokenizer_digest="cd" * 32
    )
    message = make_result_message(make_result(prepared))
    model = CompletionModel.from_api({"metadata": {"name": "m"}, "spec": {**SPEC, "engine": gpu_engine()}})
    found = read_result(json.loads(message), model, "hash")
    assert isinstance(found, CheckpointStatus) and found.network is not None
    assert found.network.layers == facts.layers and found.network.context_length == facts.context_length
    sizes = make_sizes(found)
    assert sizes.parameters == count_parameters(facts)
    assert sizes.embedding_parameters == facts.vocab * facts.hidden, "tied, so they count once"
    small = spec_of(limits={"batchSize": 8, "inputTokens": 960, "sequenceTokens": 1024})
    wanted = decide_wanted_engine(small, found)
    assert wanted.memory.kv_per_token == 2 * facts.layers * facts.kv_heads * facts.head_dim * 2
    assert wanted.refusal is None and wanted.size.seconds > 0


async def test_what_cannot_fit_makes_no_job_and_no_engine():
    world = World()
    large = {**REPLIT, "parameters": 70_000_000_000}
    apply_replit(world, large)
    await world.run(10)
    found = world.conditions()["EngineReady"]
    assert (found["status"], found["reason"]) == ("False", "DoesNotFit")
    assert "GiB" in found["message"]
    assert world.conditions()["Progressing"]["status"] == "False"
    assert world.jobs("build") == [] and world.cluster.all("Engine") == []
    assert [note.reason for note in world.events.notes if note.warning] == ["DoesNotFit"]


async def test_a_change_of_the_spec_lifts_the_refusal():
    world = World()
    apply_replit(world, {**REPLIT, "parameters": 60_000_000_000})
    await world.run_until(lambda: world.conditions().get("EngineReady", {}).get("reason") == "DoesNotFit")
    apply_replit(world, {**REPLIT, "parameters": 60_000_000_000}, engine=gpu_engine(tensorParallel=4))
    await world.run_until(world.is_ready)


async def test_an_engine_that_stands_is_served_whatever_the_arithmetic_says():
    world = World()
    apply_replit(world)
    await world.run_until(world.is_ready)
    world.cluster.change("CompletionModel", "m", {"status": {"checkpoint": {"parameters": 90_000_000_000}}})
    await world.run(5)
    assert world.is_ready()
