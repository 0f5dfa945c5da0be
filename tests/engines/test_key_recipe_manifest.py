"""Key, recipe and manifest: the key changes with every input and with nothing else, and never between releases.

``HOTSTART_UPDATE_GOLDEN=1`` rewrites golden_keys.json: only for a deliberate change, which rebuilds every engine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hotstart.engines.key import canonical_json, diff_inputs, engine_name, key_inputs, make_checkpoint_digest, make_key
from hotstart.engines.manifest import BadManifest, Manifest, ManifestFile, engine_prefix, parse_manifest
from hotstart.engines.recipe import CTRANSLATE2_TOOLCHAIN, EngineLimits, EngineRecipe, Platform, Toolchain
from hypothesis import given
from hypothesis import strategies as st

GOLDEN = Path(__file__).with_name("golden_keys.json")
DIGEST = "3c" * 32
CPU = EngineRecipe(CTRANSLATE2_TOOLCHAIN, dtype="float32", quantization="int8")
GPU = EngineRecipe(
    Toolchain("hotstart-trtllm", 2, "tensorrt_llm", "1.1.0", (("tensorrt", "10.14.1.48"), ("cuda", "13.0"))),
    dtype="float16",
    quantization="int8_weight_only",
    tensor_parallel=2,
    limits=EngineLimits(64, 3840, 4096),
    platform=Platform("amd64", "NVIDIA-H100-80GB-HBM3", "sm_90", "80Gi"),
)
RECIPES = {
    "ctranslate2 int8": CPU,
    "ctranslate2 int8_float32": replace(CPU, quantization="int8_float32"),
    "ctranslate2 float32": replace(CPU, quantization="float32"),
    "ctranslate2 on arm64": replace(CPU, platform=Platform("arm64")),
    "tensorrt_llm": GPU,
}

words = st.text(st.characters(codec="utf-8", categories=("L", "N", "P")), min_size=1, max_size=12)
hexes = st.integers(0, 2**256 - 1).map(lambda n: f"{n:064x}")
recipes = st.builds(
    EngineRecipe,
    toolchain=st.builds(
        Toolchain, words, st.integers(1, 9), st.sampled_from(["ctranslate2", "tensorrt_llm"]), words,
        st.lists(st.tuples(words, words), max_size=3).map(tuple),
    ),
    dtype=words,
    quantization=words,
    tensor_parallel=st.integers(1, 8),
    limits=st.builds(EngineLimits, st.integers(1, 512), st.integers(1, 4096), st.integers(2, 8192)),
    platform=st.builds(Platform, words, words, words, words),
)  # fmt: skip


def test_keys_are_those_of_every_release_before() -> None:
    found = {name: make_key(key_inputs(DIGEST, recipe)) for name, recipe in RECIPES.items()}
    if os.environ.get("HOTSTART_UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=2) + "\n")
    assert found == json.loads(GOLDEN.read_text())


@given(recipes)
def test_a_recipe_survives_json(recipe: EngineRecipe) -> None:
    assert EngineRecipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@given(recipes, hexes)
def test_the_key_does_not_depend_on_the_order_of_fields_or_libraries(recipe: EngineRecipe, digest: str) -> None:
    shuffled = replace(recipe.toolchain, libraries=tuple(reversed(recipe.toolchain.libraries)))
    inputs = key_inputs(digest, recipe)
    backwards = dict(reversed(key_inputs(digest, replace(recipe, toolchain=shuffled)).items()))
    assert make_key(inputs) == make_key(backwards)
    assert make_key(json.loads(canonical_json(inputs))) == make_key(inputs)
    assert not diff_inputs(inputs, json.loads(canonical_json(inputs)))


@given(st.lists(hexes, min_size=1, max_size=6, unique=True), st.randoms())
def test_a_checkpoint_digest_is_of_contents_in_any_order(digests: list[str], random: Any) -> None:
    shuffled = random.sample(digests, len(digests))
    assert make_checkpoint_digest(shuffled) == make_checkpoint_digest(digests)
    assert make_checkpoint_digest(digests[1:]) != make_checkpoint_digest(digests)


def test_the_key_changes_with_every_input() -> None:
    inputs = key_inputs(DIGEST, GPU)
    keys = {make_key(inputs)}
    for path in _leaves(inputs):
        changed = deepcopy(inputs)
        _change(changed, path)
        assert diff_inputs(changed, inputs), path
        keys.add(make_key(changed))
    assert len(keys) == 1 + len(list(_leaves(inputs)))


def test_limits_are_no_part_of_a_ctranslate2_key() -> None:
    other = replace(CPU, limits=EngineLimits(1, 2, 3))
    assert make_key(key_inputs(DIGEST, other)) == make_key(key_inputs(DIGEST, CPU))
    assert make_key(key_inputs(DIGEST, replace(GPU, limits=other.limits))) != make_key(key_inputs(DIGEST, GPU))


def test_a_difference_is_said_in_words() -> None:
    other = replace(CPU, quantization="float32")
    assert diff_inputs(key_inputs(DIGEST, CPU), key_inputs(DIGEST, other)) == ("recipe.quantization: float32 -> int8",)
    assert diff_inputs({"a": None}, {}) == ("a: absent -> None",)


def test_names_and_places() -> None:
    key = make_key(key_inputs(DIGEST, CPU))
    assert engine_name(key) == key[:40]
    assert engine_prefix("uid", key) == f"engines/uid/{key}/"


KEY = make_key(key_inputs(DIGEST, CPU))
MANIFEST = Manifest(
    key=KEY,
    inputs=key_inputs(DIGEST, CPU),
    files=(ManifestFile("model.bin", 5, "ab" * 32), ManifestFile("tokenizer.json", 0, "cd" * 32)),
    tokenizer_digest="ef" * 32,
    facts={"layers": 2},
    build_seconds=1.5,
)


def test_a_manifest_survives_its_text() -> None:
    assert parse_manifest(MANIFEST.to_json(), key=KEY) == MANIFEST
    assert MANIFEST.size == 5


@given(st.integers(0, len(MANIFEST.to_json()) - 1))
def test_a_manifest_cut_anywhere_is_none(length: int) -> None:
    with pytest.raises(BadManifest):
        parse_manifest(MANIFEST.to_json()[:length], key=KEY)


fields = st.sampled_from(["key", "inputs", "files", "tokenizer_digest"])
anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner) | st.dictionaries(fields, inner),
    max_leaves=8,
)


@given(anything)
def test_other_json_is_no_manifest(value: Any) -> None:
    with pytest.raises(BadManifest):
        parse_manifest(json.dumps(value), key=KEY)


@pytest.mark.parametrize("path", ["/etc/x", "../x", "a/../../x", "", ".", "a//b", "a\\b", "x\0y", "manifest.json", 5])
def test_an_unsafe_path_is_refused(path: str) -> None:
    bad = replace(MANIFEST, files=(ManifestFile(path, 1, "ab" * 32),))
    with pytest.raises(BadManifest, match="unsafe path"):
        parse_manifest(bad.to_json(), key=KEY)


@pytest.mark.parametrize(
    "files",
    [
        (),
        (ManifestFile("a", 1, "ab" * 32), ManifestFile("a", 1, "ab" * 32)),
        (ManifestFile("a", -1, "ab" * 32),),
        (ManifestFile("a", 1, "AB"),),
        (ManifestFile("a", 1.5, "ab" * 32),),  # type: ignore[arg-type]
    ],
)
def test_files_must_make_sense(files: tuple[ManifestFile, ...]) -> None:
    with pytest.raises(BadManifest):
        parse_manifest(replace(MANIFEST, files=files).to_json(), key=KEY)


def test_a_manifest_of_another_engine_is_refused() -> None:
    other = replace(MANIFEST, inputs=key_inputs(DIGEST, GPU))
    with pytest.raises(BadManifest, match="another engine"):
        parse_manifest(other.to_json(), key=KEY)


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, inner in items:
            yield from _leaves(inner, (*path, name))
    else:
        yield path


def _change(value: Any, path: tuple[Any, ...]) -> None:
    for name in path[:-1]:
        value = value[name]
    old = value[path[-1]]
    value[path[-1]] = old + 1 if isinstance(old, int) else f"{old}x"
