"""What the engine's key depends on, and what it does not: over recipes, checkpoints' files and models' specs."""

from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
from hotstart.engines.accelerators import find_accelerator, known_mig_profiles, known_products, make_platform
from hotstart.engines.builder.prepare import prepare
from hotstart.engines.checkpoints.folder_source import FolderSource
from hotstart.engines.checkpoints.places import FolderPlace
from hotstart.engines.kept import kept_path, timing_cache_name
from hotstart.engines.key import KEY_FORMAT, canonical_json, diff_inputs, key_inputs, make_key
from hotstart.engines.recipe import (
    BUILD_OPTIONS,
    CTRANSLATE2_TOOLCHAIN,
    EngineLimits,
    EngineRecipe,
    Platform,
    Toolchain,
)
from hotstart.engines.toolchains import find_toolchain
from hotstart.exchange.messages import ServingOptions
from hotstart.exchange.names import Kept
from hotstart.operator.api import CompletionModel
from hotstart.operator.api.status import CheckpointStatus
from hotstart.operator.core.recipe import WantedEngine, decide_wanted_engine
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tiny_checkpoint import write_tiny_checkpoint

GOLDEN = Path(__file__).with_name("golden") / "trtllm_keys.json"
DIGEST = "3c" * 32
LIBRARIES = (("hotstart-build-options", "1"), ("tensorrt", "10.14.1.48"))
MPT = Toolchain("hotstart-mpt", 1, "tensorrt_llm", "1.2.1", LIBRARIES)
QUANTIZED = Toolchain("/app/examples/quantization/quantize.py", 0, "tensorrt_llm", "1.2.1", LIBRARIES)
H100 = Platform("amd64", "NVIDIA-H100-80GB-HBM3", "sm_90", "80GiB")
REPLIT = EngineRecipe(MPT, "float16", "none", limits=EngineLimits(64, 3840, 4096), platform=H100)
#: Written out, so that a key changes only where its canonical form does, and never with the version of a converter.
RECIPES = {
    "replit-code float16 on H100": REPLIT,
    "replit-code int8 on H100": replace(REPLIT, quantization="int8_weight_only"),
    "replit-code on a partition": replace(REPLIT, platform=replace(H100, gpu_memory="1g.10gb")),
    "replit-code on two A10": replace(
        REPLIT, tensor_parallel=2, platform=Platform("amd64", "NVIDIA-A10", "sm_86", "22GiB")
    ),
    "llama fp8 on GH200": replace(
        REPLIT,
        toolchain=QUANTIZED,
        dtype="bfloat16",
        quantization="fp8",
        platform=Platform("arm64", "NVIDIA-GH200-480GB", "sm_90", "96GiB"),
    ),
    "replit-code on ctranslate2": EngineRecipe(
        Toolchain("hotstart-mpt", 1, "ctranslate2", "4.8.5"), "float32", "int8_float32"
    ),
}


def key(recipe: EngineRecipe, digest: str = DIGEST) -> str:
    return make_key(key_inputs(digest, recipe))


def test_keys_of_tensorrt_llm_are_those_of_every_release_before() -> None:
    found = {name: key(recipe) for name, recipe in RECIPES.items()}
    if os.environ.get("HOTSTART_UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=2) + "\n")
    assert found == json.loads(GOLDEN.read_text())


def test_this_release_builds_what_the_golden_keys_are_of() -> None:
    """A change here is deliberate: each such engine is built anew, and the golden recipes become those of the past."""
    assert find_toolchain("tensorrt_llm", "MPTForCausalLM") == MPT
    assert find_toolchain("tensorrt_llm", "LlamaForCausalLM", quantization="fp8") == QUANTIZED
    assert find_toolchain("ctranslate2", "MPTForCausalLM") == RECIPES["replit-code on ctranslate2"].toolchain
    gpu = find_accelerator("NVIDIA-H100-80GB-HBM3")
    assert gpu is not None
    assert make_platform(gpu) == H100


words = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=6)
hexes = st.integers(0, 2**256 - 1).map(lambda n: f"{n:064x}")
toolchains = st.builds(
    Toolchain,
    words,
    st.integers(0, 3),
    st.sampled_from(["ctranslate2", "tensorrt_llm"]),
    words,
    st.lists(st.tuples(words, words), max_size=2, unique=True).map(tuple),
)
recipes = st.builds(
    EngineRecipe,
    toolchain=toolchains,
    dtype=words,
    quantization=words,
    tensor_parallel=st.integers(1, 8),
    limits=st.builds(EngineLimits, st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    platform=st.builds(Platform, words, words, words, words),
)


@given(recipes, recipes, hexes, hexes)
def test_two_keys_are_equal_only_where_all_inputs_are(
    one: EngineRecipe, other: EngineRecipe, digest: str, another: str
) -> None:
    same = diff_inputs(key_inputs(digest, one), key_inputs(another, other)) == ()
    assert (key(one, digest) == key(other, another)) == same


@given(recipes, hexes, st.data())
def test_each_field_of_a_recipe_is_in_the_key(recipe: EngineRecipe, digest: str, data: st.DataObject) -> None:
    """Also a field that is added to these classes one day."""
    changes: dict[str, EngineRecipe] = {}
    for part in ("toolchain", "platform", "limits"):
        for field in fields(getattr(recipe, part)):
            value = _other(getattr(getattr(recipe, part), field.name))
            changes[f"{part}.{field.name}"] = replace(
                recipe, **{part: replace(getattr(recipe, part), **{field.name: value})}
            )
    for field in fields(recipe):
        if field.name not in ("toolchain", "platform", "limits"):
            changes[field.name] = replace(recipe, **{field.name: _other(getattr(recipe, field.name))})
    name = data.draw(st.sampled_from(sorted(changes)))
    limits_of_ctranslate2 = name.startswith("limits.") and recipe.toolchain.runtime == "ctranslate2"
    assert (key(changes[name], digest) == key(recipe, digest)) == limits_of_ctranslate2, name


def _other(value: Any) -> Any:
    if isinstance(value, tuple):
        return (*value, ("one more", "1"))
    return value + 1 if isinstance(value, int) else f"{value}~"


@given(recipes, hexes)
def test_values_cannot_be_moved_from_one_field_to_the_next(recipe: EngineRecipe, digest: str) -> None:
    swapped = replace(recipe, dtype=recipe.quantization, quantization=recipe.dtype)
    assert (key(swapped, digest) == key(recipe, digest)) == (recipe.dtype == recipe.quantization)
    glued = replace(recipe, dtype=recipe.dtype + recipe.quantization, quantization="")
    assert key(glued, digest) != key(recipe, digest)


@given(recipes, hexes, st.randoms(use_true_random=False))
def test_order_means_nothing(recipe: EngineRecipe, digest: str, chance: random.Random) -> None:
    libraries = list(recipe.toolchain.libraries)
    chance.shuffle(libraries)
    shuffled = replace(recipe, toolchain=replace(recipe.toolchain, libraries=tuple(libraries)))
    assert key(shuffled, digest) == key(recipe, digest)
    parts = list(key_inputs(digest, recipe).items())
    chance.shuffle(parts)
    assert make_key(dict(parts)) == key(recipe, digest)


@given(recipes, hexes)
def test_a_key_survives_the_way_through_status_and_manifest(recipe: EngineRecipe, digest: str) -> None:
    sent = json.loads(json.dumps(recipe.to_dict()))
    assert key(EngineRecipe.from_dict(sent), digest) == key(recipe, digest)
    assert make_key(json.loads(canonical_json(key_inputs(digest, recipe)))) == key(recipe, digest)


def test_every_gpu_and_partition_has_a_key_of_its_own() -> None:
    keys = set()
    count = 0
    for product in known_products():
        for profile in (None, *known_mig_profiles(product)):
            gpu = find_accelerator(product, profile)
            assert gpu is not None
            keys.add(key(replace(REPLIT, platform=make_platform(gpu))))
            count += 1
    assert len(keys) == count


# ------------------------------------------------------------------------------------------------ checkpoint's files


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "one", shards=2)


def digests(folder: Path, tmp_path: Path) -> tuple[str, str]:
    """Checkpoint and tokenizer digest, as inspection finds them."""
    scratch = tmp_path / f"scratch-{folder.name}-{random.getrandbits(32)}"
    scratch.mkdir()
    place = FolderPlace(f"file://{folder}", folder, folder)
    found = prepare(
        FolderSource(place),
        scratch,
        ServingOptions(max_input_tokens=96, max_new_tokens=32),
        on_choice=lambda size: None,
        on_bytes=lambda count: None,
        heads_only=False,
    )
    return found.checkpoint_digest, found.tokenizer_digest


def test_place_and_times_of_files_mean_nothing(tiny: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "two" / "deeper"
    shutil.copytree(tiny, elsewhere)
    for number, path in enumerate(sorted(elsewhere.iterdir(), reverse=True)):
        os.utime(path, (number, number))
    assert digests(elsewhere, tmp_path) == digests(tiny, tmp_path)


def test_a_file_that_is_no_part_of_the_checkpoint_means_nothing(tiny: Path, tmp_path: Path) -> None:
    before = digests(tiny, tmp_path)
    (tiny / "README.md").write_text("# A model\n")
    assert digests(tiny, tmp_path) == before


def test_the_tokenizer_is_not_in_the_key(tiny: Path, tmp_path: Path) -> None:
    checkpoint, tokenizer = digests(tiny, tmp_path)
    value = json.loads((tiny / "tokenizer.json").read_text())
    (tiny / "tokenizer.json").write_text(json.dumps(value, indent=7))
    (tiny / "tokenizer_config.json").write_text(json.dumps({"padding_side": "left"}))
    again = digests(tiny, tmp_path)
    assert again[0] == checkpoint
    assert again[1] != tokenizer


@pytest.mark.parametrize("name", ["config.json", "model-00001-of-00002.safetensors"])
def test_one_byte_of_weights_or_config_is_another_checkpoint(tiny: Path, tmp_path: Path, name: str) -> None:
    before = digests(tiny, tmp_path)
    body = bytearray((tiny / name).read_bytes())
    at = len(body) - 1 if name != "config.json" else body.index(b"{") + 1
    body[at : at + 1] = bytes([body[at] ^ 1]) if name != "config.json" else b" " + body[at : at + 1]
    (tiny / name).write_bytes(body)
    after = digests(tiny, tmp_path)
    assert after[0] != before[0]
    assert after[1] == before[1]


# ------------------------------------------------------------------------------------------------------ model's spec

SPEC: dict[str, Any] = {
    "checkpoint": {"uri": "s3://models/tiny/", "revision": "1"},
    "engine": {"runtime": "ctranslate2", "quantization": "int8"},
    "serving": {"maxNewTokens": 32},
    "slo": {"latency": "250ms"},
}
INSPECTED = CheckpointStatus(digest=DIGEST, architecture="LlamaForCausalLM", format="safetensors", parameters=1000)


def wanted(name: str = "m", **changes: Any) -> str:
    model = CompletionModel.from_api(
        {
            "metadata": {"name": name, "namespace": f"team-{name}", "uid": name, "generation": 1},
            "spec": SPEC | {part: SPEC.get(part, {}) | value for part, value in changes.items()},
        }
    )
    found = decide_wanted_engine(model.spec, INSPECTED)
    assert isinstance(found, WantedEngine), found
    return found.key


@pytest.mark.parametrize(
    "changes",
    [
        {"checkpoint": {"uri": "s3://elsewhere/tiny/"}},
        {"checkpoint": {"revision": "2"}},
        {"checkpoint": {"secretName": "other"}},
        {"serving": {"maxNewTokens": 16}},
        {"serving": {"stop": "block"}},
        {"slo": {"latency": "1s"}},
        {"scaling": {"minReplicas": 3, "maxReplicas": 9}},
        {"engine": {"limits": {"batchSize": 2, "inputTokens": 64, "sequenceTokens": 96}}},
    ],
    ids=str,
)
def test_what_a_model_says_beside_its_engine_is_not_in_the_key(changes: dict[str, Any]) -> None:
    assert wanted(**changes) == wanted()
    assert wanted("another-name") == wanted()


def test_what_a_model_says_of_its_engine_is_in_the_key() -> None:
    assert wanted(engine={"quantization": "float32"}) != wanted()


# ------------------------------------------------------------------------------------------------------ timing cache


@given(recipes, recipes)
def test_a_timing_cache_is_shared_by_what_times_kernels_alike(one: EngineRecipe, other: EngineRecipe) -> None:
    name = timing_cache_name(one.toolchain, one.platform)
    converted_otherwise = replace(one.toolchain, converter=f"{one.toolchain.converter}~", converter_version=9)
    assert timing_cache_name(converted_otherwise, one.platform) == name
    alike = (
        one.platform == other.platform
        and (one.toolchain.runtime, one.toolchain.runtime_version)
        == (other.toolchain.runtime, other.toolchain.runtime_version)
        and dict(one.toolchain.libraries) == dict(other.toolchain.libraries)
    )
    assert (timing_cache_name(other.toolchain, other.platform) == name) == alike


def test_each_namespace_has_its_own_timing_caches() -> None:
    name = timing_cache_name(MPT, H100)
    ours, theirs = (kept_path(uid, Kept.TIMING_CACHE, name) for uid in ("ours", "theirs"))
    assert (ours, theirs) == (f"timing-caches/ours/{name}", f"timing-caches/theirs/{name}")


def test_the_format_of_keys_is_the_first() -> None:
    assert KEY_FORMAT == 1
    assert asdict(CTRANSLATE2_TOOLCHAIN)["libraries"] == ()
    assert dict(MPT.libraries)[BUILD_OPTIONS] == "1"
