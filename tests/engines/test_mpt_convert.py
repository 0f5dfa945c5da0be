"""MPT -> TensorRT-LLM: the network that all ranks hold together computes what the original computes.

The reference runs the original weights, and then the converted ones, put together from every rank and described by the
converted config.json alone.
"""

from __future__ import annotations

import tempfile
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hotstart.engines.checkpoints.checkpoint import mpt_facts
from hotstart.engines.checkpoints.mpt_config import MptFacts
from hotstart.engines.checkpoints.safetensors_folder import SafetensorsFolder
from hotstart.engines.recipe import EngineRecipe, Toolchain
from hotstart.engines.reference.mpt import MptReference
from hotstart.engines.runtimes.tensorrt_llm.mpt_convert import convert_mpt
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.mpt_reassembly import read_facts, read_rank, reassemble
from tests.support.tiny_checkpoint import Weights
from tests.support.tiny_mpt import TinyMptShape, make_tiny_mpt_weights, write_tiny_mpt

TOOLCHAIN = Toolchain("hotstart-mpt", 1, "tensorrt_llm", "1.2.1")
#: Rounding to 16 bits once, relative to the largest logit, with room for two layers of it.
TOLERANCE = {"float16": 4e-3, "bfloat16": 3e-2}
EXACT = 2e-5


def make_recipe(dtype: str = "float16", ranks: int = 1, quantization: str = "none") -> EngineRecipe:
    return EngineRecipe(TOOLCHAIN, dtype, quantization, ranks)


def convert(folder: Path, recipe: EngineRecipe) -> Path:
    converted = folder.with_name(f"{folder.name}-converted")
    convert_mpt(SafetensorsFolder(folder), recipe, converted, lambda share: None)
    return converted


def round_as(weights: Weights, dtype: str) -> Weights:
    """The weights as the 16-bit type has them, as float32."""
    if dtype == "float16":
        return {name: value.astype(np.float16).astype(np.float32) for name, value in weights.items()}
    cut = {name: value.view(np.uint32) & np.uint32(0xFFFF0000) for name, value in weights.items()}
    return {name: value.view(np.float32) for name, value in cut.items()}


def logits(facts: MptFacts, weights: Weights, ids: list[int]) -> npt.NDArray[np.float32]:
    """What the reference computes, and lm_head's bias, which only converted networks have."""
    found = MptReference(facts, weights.__getitem__).logits(ids)
    return found + weights["lm_head.bias"] if "lm_head.bias" in weights else found


def difference(original: Weights, facts: MptFacts, converted: Path, ids: list[int]) -> float:
    """Largest difference of a logit, as a share of the largest logit."""
    expected = logits(facts, original, ids)
    found = logits(read_facts(converted), reassemble(converted), ids)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@st.composite
def shapes_and_ranks(draw: st.DrawFn) -> tuple[TinyMptShape, int]:
    ranks = draw(st.sampled_from([1, 2, 4]))
    heads = draw(st.sampled_from([4, 8, 12]))
    shared = [n for n in range(1, heads + 1) if heads % n == 0 and (n % ranks == 0 or ranks % n == 0)]
    shape = TinyMptShape(
        layers=draw(st.integers(1, 2)),
        width=heads * draw(st.sampled_from([4, 8])),
        heads=heads,
        kv_heads=draw(st.sampled_from(shared)),
        vocab=draw(st.integers(300, 310)),
        bias=draw(st.booleans()),
        clip_qkv=draw(st.sampled_from([None, 0.5, 2.0])),
        alibi_bias_max=draw(st.sampled_from([8, 16])),
    )
    return shape, ranks


@settings(max_examples=60)
@given(
    shapes_and_ranks(),
    st.sampled_from(["float16", "bfloat16"]),
    st.sampled_from(["float32", "float16", "bfloat16"]),
    st.integers(0, 2**32 - 1),
)
def test_the_converted_network_computes_what_the_original_computes(
    shape_and_ranks: tuple[TinyMptShape, int], dtype: str, stored: str, seed: int
) -> None:
    shape, ranks = shape_and_ranks
    weights = make_tiny_mpt_weights(shape, seed=seed)
    if stored != "float32":
        weights = round_as(weights, stored)
    with tempfile.TemporaryDirectory() as parent:
        folder = write_tiny_mpt(Path(parent) / "mpt", shape=shape, weights=weights, dtype=stored, shards=2)
        facts = mpt_facts(SafetensorsFolder(folder))
        converted = convert(folder, make_recipe(dtype, ranks))
        assert read_facts(converted) == replace(facts, context_length=0)
        ids = np.random.default_rng(seed).integers(0, shape.vocab, 12).tolist()
        tolerance = EXACT if stored == dtype and not shape.bias else TOLERANCE[dtype]
        assert difference(weights, facts, converted, ids) < tolerance


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_without_biases_every_weight_is_the_original_one(kv_heads: int, ranks: int, dtype: str, tmp_path: Path) -> None:
    shape = TinyMptShape(kv_heads=kv_heads, vocab=509)
    weights = round_as(make_tiny_mpt_weights(shape, seed=7), dtype)
    found = reassemble(
        convert(write_tiny_mpt(tmp_path / "mpt", shape=shape, weights=weights), make_recipe(dtype, ranks))
    )
    assert found.keys() == weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_biases_of_norms_move_into_the_layers_behind_them(ranks: int, tmp_path: Path) -> None:
    shape = TinyMptShape(kv_heads=2, bias=True)
    weights = make_tiny_mpt_weights(shape, seed=3)
    found = reassemble(
        convert(write_tiny_mpt(tmp_path / "mpt", shape=shape, weights=weights), make_recipe("float16", ranks))
    )
    block = "transformer.blocks.1"
    for norm, layer in (("norm_1", "attn.Wqkv"), ("norm_2", "ffn.up_proj")):
        moved = weights[f"{block}.{layer}.weight"] @ weights[f"{block}.{norm}.bias"]
        expected = weights[f"{block}.{layer}.bias"] + moved
        np.testing.assert_allclose(found[f"{block}.{layer}.bias"], expected, atol=2e-3, err_msg=layer)
        assert np.abs(moved).max() > 0.05
    expected = weights["transformer.wte.weight"] @ weights["transformer.norm_f.bias"]
    np.testing.assert_allclose(found["lm_head.bias"], expected, atol=2e-3)


def swap_keys_and_values(weights: Weights) -> None:
    q, k, v = np.split(weights["transformer.blocks.0.attn.Wqkv.weight"], [64, 96])
    weights["transformer.blocks.0.attn.Wqkv.weight"] = np.concatenate([q, v, k])


def swap_query_heads(weights: Weights) -> None:
    weight = weights["transformer.blocks.0.attn.Wqkv.weight"]
    weight[:64] = np.concatenate([weight[32:64], weight[:32]])


def swap_columns(weights: Weights) -> None:
    weight = weights["transformer.blocks.1.ffn.down_proj.weight"]
    weights["transformer.blocks.1.ffn.down_proj.weight"] = np.concatenate([weight[:, 128:], weight[:, :128]], axis=1)


def swap_norms(weights: Weights) -> None:
    first, second = (f"transformer.blocks.0.norm_{i}.weight" for i in (1, 2))
    weights[first], weights[second] = weights[second], weights[first]


WRONG: dict[str, Any] = {
    "keys for values": swap_keys_and_values,
    "ranks' queries exchanged": swap_query_heads,
    "ranks' columns exchanged": swap_columns,
    "one norm for the other": swap_norms,
    "slopes": {"alibi_bias_max": 16.0},
    "no clipping": {"clip_qkv": None},
    "heads not shared": {"kv_heads": 1},
}


@pytest.mark.parametrize("name", WRONG)
def test_the_comparison_sees_what_a_converter_could_do_wrong(name: str, tmp_path: Path) -> None:
    shape = TinyMptShape(clip_qkv=1.0)
    weights = round_as(make_tiny_mpt_weights(shape, seed=1), "float16")
    folder = write_tiny_mpt(tmp_path / "mpt", shape=shape, weights=weights)
    facts = mpt_facts(SafetensorsFolder(folder))
    converted = convert(folder, make_recipe(ranks=2))
    ids = list(range(20, 44))
    assert difference(weights, facts, converted, ids) < EXACT
    found, wrong = reassemble(converted), WRONG[name]
    if name == "heads not shared":
        keys = found["transformer.blocks.0.attn.Wqkv.weight"][64:96]
        keys[16:32] = keys[:16]
    elif isinstance(wrong, dict):
        facts = replace(facts, **wrong)
    else:
        wrong(found)
    expected = MptReference(mpt_facts(SafetensorsFolder(folder)), weights.__getitem__).logits(ids)
    worst = np.abs(logits(facts, found, ids) - expected).max() / np.abs(expected).max()
    assert worst > 5 * TOLERANCE["float16"]


def test_fewer_key_value_heads_than_ranks_stand_on_several(tmp_path: Path) -> None:
    shape = TinyMptShape(kv_heads=2)
    converted = convert(write_tiny_mpt(tmp_path / "mpt", shape=shape), make_recipe(ranks=4))
    name = "transformer.layers.0.attention.qkv.weight"
    keys = [read_rank(converted / f"rank{rank}.safetensors")[name][16:32] for rank in range(4)]
    np.testing.assert_array_equal(keys[0], keys[1])
    np.testing.assert_array_equal(keys[2], keys[3])
    assert not np.array_equal(keys[1], keys[2])


def test_progress_rises_to_one(tmp_path: Path) -> None:
    folder = write_tiny_mpt(tmp_path / "mpt", shape=TinyMptShape(layers=3))
    shares: list[float] = []
    convert_mpt(SafetensorsFolder(folder), make_recipe(ranks=2), tmp_path / "converted", shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert len(set(shares)) > 3 * 6


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = write_tiny_mpt(tmp_path / "mpt", shards=3)
    first, second = (tmp_path / "first", tmp_path / "second")
    second.mkdir()  # an empty folder is as good as none
    for target in (first, second):
        convert_mpt(SafetensorsFolder(folder), make_recipe(ranks=2), target, lambda share: None)
    assert sorted(path.name for path in first.iterdir()) == ["config.json", "rank0.safetensors", "rank1.safetensors"]
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


@pytest.mark.parametrize(("ranks", "stored"), [(1, "bfloat16"), (4, "float32")])
def test_memory_holds_blocks_and_no_tensor(ranks: int, stored: str, tmp_path: Path) -> None:
    """An embedding of 100 MB in float32, and a norm's bias that is multiplied with all of it; 50 MB of room."""
    shape = TinyMptShape(layers=1, width=256, vocab=100_000, bias=True)
    folder = write_tiny_mpt(tmp_path / "mpt", shape=shape, dtype=stored)
    tracemalloc.start()
    try:
        convert(folder, make_recipe(ranks=ranks))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50e6
