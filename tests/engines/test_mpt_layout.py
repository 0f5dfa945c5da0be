"""replit-code-v1_5-3b's exact shape: its TensorRT-LLM config by golden file, its tensors by rank, the files' headers.

``HOTSTART_UPDATE_GOLDEN=1`` rewrites the golden files: only for a deliberate change, which raises the converter's
version.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hotstart.engines.checkpoints.checkpoint import count_parameters, expected_shapes
from hotstart.engines.checkpoints.mpt_config import MptFacts, make_mpt_facts
from hotstart.engines.recipe import EngineRecipe, Toolchain
from hotstart.engines.runtimes.tensorrt_llm.checkpoint_config import check_mpt_recipe, make_checkpoint_config
from hotstart.engines.runtimes.tensorrt_llm.layout import kv_head_range, make_layout, padded_vocabulary
from hotstart.engines.runtimes.tensorrt_llm.mpt_convert import rank_entries
from hotstart.engines.runtimes.tensorrt_llm.safetensors_writer import Entry, SafetensorsWriter, make_header
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors import safe_open

from tests.support.tiny_mpt import REPLIT, make_mpt_config

GOLDEN = Path(__file__).parent / "golden"
FACTS = make_mpt_facts(make_mpt_config(REPLIT))
EMBEDDING = 32768 * 3072


def make_recipe(ranks: int = 1, quantization: str = "none", dtype: str = "float16") -> EngineRecipe:
    return EngineRecipe(Toolchain("hotstart-mpt", 1, "tensorrt_llm", "1.2.1"), dtype, quantization, ranks)


def check_golden(name: str, value: Any) -> None:
    text = json.dumps(value, indent=4) + "\n"
    if os.environ.get("HOTSTART_UPDATE_GOLDEN"):
        (GOLDEN / name).write_text(text)
    assert (GOLDEN / name).read_text() == text


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("mpt_replit.json", make_recipe()),
        ("mpt_replit_tp4_bfloat16.json", make_recipe(4, dtype="bfloat16")),
        ("mpt_replit_tp2_int8.json", make_recipe(2, "int8_weight_only")),
        ("mpt_replit_int4.json", make_recipe(1, "int4_weight_only")),
    ],
)
def test_config_is_the_golden_one(name: str, recipe: EngineRecipe) -> None:
    check_mpt_recipe(FACTS, recipe)
    check_golden(name, make_checkpoint_config(FACTS, recipe))


@pytest.mark.parametrize("ranks", [1, 2])
def test_tensors_of_the_last_rank_are_the_golden_ones(ranks: int) -> None:
    layout = make_layout(FACTS, ranks, ranks - 1)
    shown = [target for target in layout if ".layers." not in target.name or ".layers.31." in target.name]
    check_golden(
        f"mpt_replit_tensors_tp{ranks}.json",
        {
            target.name: {
                "shape": list(target.shape),
                "from": [f"{p.source} rows {list(p.rows)} columns {p.columns or 'all'}" for p in target.pieces],
            }
            for target in shown
        },
    )


@pytest.mark.parametrize("ranks", [1, 2, 4, 8, 24])
def test_all_ranks_together_hold_each_linear_weight_once(ranks: int) -> None:
    sizes: Counter[str] = Counter()
    for rank in range(ranks):
        for target in make_layout(FACTS, ranks, rank):
            if target.linear and "qkv" not in target.name:
                sizes[target.name] += prod(target.shape)
    assert set(sizes.values()) == {3072 * 3072, 3072 * 12288}
    assert sum(sizes.values()) == 32 * (3072 * 3072 + 2 * 3072 * 12288)


@pytest.mark.parametrize(
    ("recipe", "linear_bytes"),
    [
        (make_recipe(), 2.0),
        (make_recipe(quantization="int8_weight_only"), 1.0),
        (make_recipe(quantization="int4_weight_only"), 0.5),
    ],
    ids=["float16", "int8", "int4"],
)
def test_size_of_the_whole_checkpoint(recipe: EngineRecipe, linear_bytes: float) -> None:
    """One rank: each linear weight in its width, embeddings twice and norms in 16 bits, a scale for each output."""
    weights = count_parameters(FACTS)
    norms, outputs = 65 * 3072, 32 * (5120 + 3072 + 12288 + 3072)
    linear = weights - EMBEDDING - norms
    scales = 0 if recipe.quantization == "none" else outputs
    expected = linear * linear_bytes + 2 * (2 * EMBEDDING + norms + scales)
    assert sum(entry.size for entry in rank_entries(make_layout(FACTS, 1, 0), recipe)) == expected


def test_every_tensor_of_the_checkpoint_is_read() -> None:
    for bias in (False, True):
        facts = make_mpt_facts(make_mpt_config(REPLIT) | {"no_bias": not bias})
        pieces = [piece for target in make_layout(facts, 2, 1) for piece in target.pieces]
        read = {name for piece in pieces for name in (piece.source, piece.matrix, piece.vector) if name}
        assert read == set(expected_shapes(facts))


@pytest.mark.parametrize(
    ("kv_heads", "ranks", "expected"),
    [
        (8, 1, [(0, 8)]),
        (8, 4, [(0, 2), (2, 4), (4, 6), (6, 8)]),
        (2, 4, [(0, 1), (0, 1), (1, 2), (1, 2)]),
        (1, 2, [(0, 1), (0, 1)]),
    ],
)
def test_key_value_heads_of_each_rank(kv_heads: int, ranks: int, expected: list[tuple[int, int]]) -> None:
    config = make_mpt_config(REPLIT)
    config["attn_config"] |= {"attn_type": "grouped_query_attention", "kv_n_heads": kv_heads}
    facts = make_mpt_facts(config)
    assert [kv_head_range(facts, ranks, rank) for rank in range(ranks)] == expected
    for rank in range(ranks):  # each query's head is the one that the whole network gives it
        first = rank * facts.heads // ranks
        local = facts.heads // ranks // (expected[rank][1] - expected[rank][0])
        for query in range(facts.heads // ranks):
            assert expected[rank][0] + query // local == (first + query) // (facts.heads // kv_heads)


@given(st.integers(1, 70000), st.integers(1, 16))
def test_the_vocabulary_is_padded_to_a_multiple_of_the_ranks(vocab: int, ranks: int) -> None:
    padded = padded_vocabulary(vocab, ranks)
    assert padded % ranks == 0
    assert 0 <= padded - vocab < ranks


@given(st.integers(1, 40), st.integers(1, 12))
@example(1, 3)
def test_lm_head_has_all_tokens_whatever_the_ranks(vocab: int, heads: int) -> None:
    facts = MptFacts("MPTForCausalLM", 1, 8 * heads, 32 * heads, heads, heads, 8, vocab, 64, bias=True)
    layouts = [make_layout(facts, heads, rank) for rank in range(heads)]
    heads_of = [next(target for target in layout if target.name == "lm_head.weight") for layout in layouts]
    rows = [row for target in heads_of for piece in target.pieces if piece.source for row in range(*piece.rows)]
    assert rows == list(range(vocab))
    for layout in layouts:
        for target in layout:
            assert sum(piece.count for piece in target.pieces) == target.shape[0]


ENTRIES = st.lists(
    st.builds(
        Entry,
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(lambda n: n != "__metadata__"),
        st.sampled_from(["F16", "BF16", "I8"]),
        st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple),
    ),
    max_size=6,
    unique_by=lambda entry: entry.name,
)


@given(ENTRIES)
def test_tensors_lie_one_behind_the_other_and_aligned(entries: list[Entry]) -> None:
    head, starts = make_header(entries)
    assert len(head) % 8 == 0
    spans = sorted((starts[entry.name], starts[entry.name] + entry.size) for entry in entries)
    edges = [len(head), *(edge for span in spans for edge in span)]
    assert all(first == second for first, second in zip(edges[::2], edges[1::2], strict=False))
    assert all(starts[entry.name] % 2 == 0 for entry in entries if entry.dtype != "I8")


def test_the_library_reads_what_was_written_in_pieces(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.float16).reshape(4, 6)
    small = np.arange(-3, 4, dtype=np.int8)
    path = tmp_path / "rank0.safetensors"
    with SafetensorsWriter(path, [Entry("small", "I8", (7,)), Entry("values", "F16", (4, 6))]) as file:
        file.write("small", small)
        file.write("values", values[2:], offset=2 * 6 * 2)
        file.write("values", values[:2])
    assert path.stat().st_size == file.size
    with safe_open(path, framework="numpy") as opened:
        np.testing.assert_array_equal(opened.get_tensor("values"), values)
        np.testing.assert_array_equal(opened.get_tensor("small"), small)
