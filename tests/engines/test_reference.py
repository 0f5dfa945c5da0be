"""The reference networks: each part against values by hand, the whole against loops over single numbers."""

from __future__ import annotations

import math
import weakref
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hotstart.engines.checkpoints.checkpoint import Facts, ModelFacts, RopeScaling, expected_shapes
from hotstart.engines.checkpoints.gguf_file import GgufFile
from hotstart.engines.checkpoints.mpt_config import MptFacts
from hotstart.engines.checkpoints.safetensors_folder import SafetensorsFolder
from hotstart.engines.errors import Reason, Terminal
from hotstart.engines.reference.llama import LlamaReference, rotary_frequencies, rotate, silu
from hotstart.engines.reference.mpt import MptReference, alibi_bias, alibi_slopes, gelu, layer_norm
from hotstart.engines.reference.network import Reference, attend
from hotstart.engines.reference.opening import make_reference
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.tiny_checkpoint import Weights, make_tiny_weights, write_tiny_checkpoint, write_tiny_gguf
from tests.support.tiny_mpt import make_tiny_mpt_weights, write_tiny_mpt

LLAMA = ModelFacts("LlamaForCausalLM", 2, 16, 24, 4, 2, 4, 40, 64, 1e-5, 10000.0, None, False, True, True)
MPT = MptFacts("MPTForCausalLM", 2, 12, 20, 3, 1, 4, 40, 64, 8.0, 0.7, True, 1e-5)
IDS = [5, 17, 3, 30, 30, 12, 8, 39, 0, 21]


def random_weights(facts: Facts, seed: int = 0) -> Weights:
    """Every tensor of the network, of a size that keeps activations near 1."""
    random = np.random.default_rng(seed)
    return {
        name: (random.standard_normal(shape) * (1.5 / math.sqrt(shape[-1]) if len(shape) == 2 else 0.5)).astype("f4")
        for name, shape in expected_shapes(facts).items()
    }


def make(facts: Facts, weight: Any) -> Reference:
    return MptReference(facts, weight) if isinstance(facts, MptFacts) else LlamaReference(facts, weight)


BOTH = pytest.mark.parametrize("facts", [LLAMA, MPT], ids=["llama", "mpt"])


class TestParts:
    def test_slopes_of_eight_heads_are_those_of_the_paper(self) -> None:
        assert alibi_slopes(8, 8).tolist() == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]

    @pytest.mark.parametrize(
        ("heads", "bias_max", "exponents"),
        [
            (1, 8, [8]),
            (2, 8, [4, 8]),
            (3, 8, [4, 8, 2]),
            (6, 8, [2, 4, 6, 8, 1, 3]),
            (12, 8, [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]),
            (24, 8, [*np.arange(0.5, 8.1, 0.5), *np.arange(0.25, 4, 0.5)]),
            (4, 16, [4, 8, 12, 16]),
            (3, 4, [2, 4, 1]),
        ],
    )
    def test_slopes_by_hand(self, heads: int, bias_max: float, exponents: list[float]) -> None:
        np.testing.assert_allclose(alibi_slopes(heads, bias_max), [2.0**-e for e in exponents], rtol=1e-6)

    def test_the_bias_falls_by_the_slope_with_each_token(self) -> None:
        bias = alibi_bias(np.array([0.5, 0.25], dtype=np.float32), 3)
        assert bias.shape == (2, 3, 3)
        assert bias[0, 2].tolist() == [-1.0, -0.5, 0.0]
        assert bias[1, 1, :2].tolist() == [-0.25, 0.0]

    def test_rotary_frequencies_by_hand(self) -> None:
        np.testing.assert_allclose(rotary_frequencies(4, 10000.0, None), [1, 0.01])
        np.testing.assert_allclose(rotary_frequencies(8, 16.0, None), [1, 0.5, 0.25, 0.125])
        np.testing.assert_allclose(rotary_frequencies(4, 10000.0, RopeScaling("linear", 4.0)), [0.25, 0.0025])

    def test_llama3_keeps_short_waves_stretches_long_ones_and_mixes_between(self) -> None:
        scaling = RopeScaling("llama3", 8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192)
        base, width = 500000.0, 128
        plain, scaled = rotary_frequencies(width, base, None), rotary_frequencies(width, base, scaling)
        turns = 8192 * plain / (2 * math.pi)
        np.testing.assert_allclose(scaled[turns >= 4], plain[turns >= 4])
        np.testing.assert_allclose(scaled[turns <= 1], plain[turns <= 1] / 8)
        [between] = np.flatnonzero((turns > 1) & (turns < 4))[:1]
        share = (turns[between] - 1) / 3
        assert scaled[between] == pytest.approx(share * plain[between] + (1 - share) * plain[between] / 8)
        assert all(high > low for high, low in pairwise(scaled))

    def test_a_pair_is_turned_by_its_position(self) -> None:
        x = np.zeros((1, 3, 4), dtype=np.float32)
        x[..., 0] = 1
        turned = rotate(x, rotary_frequencies(4, 10000.0, None))
        for position in range(3):
            expected = [math.cos(position), 0, math.sin(position), 0]
            np.testing.assert_allclose(turned[0, position], expected, atol=1e-6)

    def test_what_two_tokens_see_of_each_other_depends_on_their_distance_alone(self) -> None:
        random = np.random.default_rng(0)
        q, k = random.standard_normal((2, 1, 1, 8), dtype=np.float32).repeat(9, axis=2)
        frequencies = rotary_frequencies(8, 100.0, None)
        scores = (rotate(q, frequencies) @ rotate(k, frequencies).transpose(0, 2, 1))[0]
        for distance in range(-8, 9):
            diagonal = np.diagonal(scores, distance)
            np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-5)

    def test_gelu_is_exact(self) -> None:
        x = np.concatenate([np.linspace(-12, 12, 4001), [-1e4, 0, 1e4]]).astype(np.float32)
        exact = [0.5 * float(v) * (1 + math.erf(float(v) / math.sqrt(2))) for v in x]
        found = gelu(x)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, exact, rtol=2e-7, atol=1e-7)

    def test_silu_overflows_nowhere(self) -> None:
        x = np.array([-1e4, -100, -1, 0, 1, 100, 1e4], dtype=np.float32)
        with np.errstate(over="raise", invalid="raise"):
            found = silu(x)
        np.testing.assert_allclose(found, [0, 0, -1 / (1 + math.e), 0, math.e / (1 + math.e), 100, 1e4], atol=1e-6)

    def test_layer_norm_by_hand(self) -> None:
        x = np.array([[1, 3]], dtype=np.float32)  # mean 2, variance 1
        gain, bias = np.array([2, 1], dtype=np.float32), np.array([0, 5], dtype=np.float32)
        root = math.sqrt(1.25)
        np.testing.assert_allclose(layer_norm(x, gain, None, 0.25), [[-2 / root, 1 / root]], rtol=1e-6)
        np.testing.assert_allclose(layer_norm(x, gain, bias, 0.25), [[-2 / root, 5 + 1 / root]], rtol=1e-6)

    def test_without_preference_each_token_sees_the_mean_of_what_came(self) -> None:
        values = np.arange(6, dtype=np.float32).reshape(1, 3, 2)  # one key head, shared by two queries
        none = np.zeros((2, 3, 2), dtype=np.float32)
        found = attend(none, none[:1], values)
        np.testing.assert_allclose(found, [[0, 1, 0, 1], [1, 2, 1, 2], [2, 3, 2, 3]], rtol=1e-6)


def by_single_numbers(facts: MptFacts, w: Weights, ids: list[int]) -> list[list[float]]:
    """MPT once more, over Python floats, one token at a time; ALiBi counted from the last key as llm-foundry does."""

    def linear(x: list[float], name: str) -> list[float]:
        rows, biases = w[f"{name}.weight"].tolist(), w[f"{name}.bias"].tolist()
        return [sum(map(float.__mul__, row, x)) + bias for row, bias in zip(rows, biases, strict=True)]

    def norm(x: list[float], name: str) -> list[float]:
        mean = sum(x) / len(x)
        root = math.sqrt(sum((v - mean) ** 2 for v in x) / len(x) + facts.norm_epsilon)
        gains, biases = w[f"{name}.weight"].tolist(), w[f"{name}.bias"].tolist()
        return [(v - mean) / root * gain + bias for v, gain, bias in zip(x, gains, biases, strict=True)]

    slopes, group, d = [2**-4.0, 2**-8.0, 2**-2.0], facts.heads // facts.kv_heads, facts.head_dim
    assert facts.clip_qkv is not None
    stream = [w["transformer.wte.weight"][token].tolist() for token in ids]
    for layer in range(facts.layers):
        name = f"transformer.blocks.{layer}"
        qkv = [linear(norm(x, f"{name}.norm_1"), f"{name}.attn.Wqkv") for x in stream]
        qkv = [[min(max(v, -facts.clip_qkv), facts.clip_qkv) for v in row] for row in qkv]
        mixed = []
        for t in range(len(ids)):
            out: list[float] = []
            for head in range(facts.heads):
                key = facts.hidden + head // group * d
                value = key + facts.kv_heads * d
                q = qkv[t][head * d : head * d + d]
                scores = [
                    sum(map(float.__mul__, q, qkv[s][key : key + d])) / math.sqrt(d) + slopes[head] * (s - len(ids) + 1)
                    for s in range(t + 1)
                ]
                weights = [math.exp(score - max(scores)) for score in scores]
                out += [
                    sum(weight * qkv[s][value + i] for s, weight in enumerate(weights)) / sum(weights) for i in range(d)
                ]
            mixed.append(out)
        for t, row in enumerate(mixed):
            x = [a + b for a, b in zip(stream[t], linear(row, f"{name}.attn.out_proj"), strict=True)]
            wide = linear(norm(x, f"{name}.norm_2"), f"{name}.ffn.up_proj")
            wide = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in wide]
            stream[t] = [a + b for a, b in zip(x, linear(wide, f"{name}.ffn.down_proj"), strict=True)]
    table = w["transformer.wte.weight"].tolist()
    last = [norm(x, "transformer.norm_f") for x in stream]
    return [[sum(map(float.__mul__, row, x)) for row in table] for x in last]


def test_mpt_agrees_with_loops_over_single_numbers() -> None:
    weights = random_weights(MPT)
    expected = np.array(by_single_numbers(MPT, weights, IDS))
    assert np.abs(MptReference(MPT, weights.__getitem__).logits(IDS) - expected).max() < 1e-4
    for field in ({"clip_qkv": None}, {"alibi_bias_max": 4.0}, {"norm_epsilon": 0.1}):
        other = MptReference(replace(MPT, **field), weights.__getitem__).logits(IDS)
        assert np.abs(other - expected).max() > 0.01, field


@BOTH
def test_no_token_sees_what_comes_after_it(facts: Facts) -> None:
    reference = make(facts, random_weights(facts).__getitem__)
    whole = reference.logits(IDS)
    for length in (1, 4, 9):
        np.testing.assert_allclose(reference.logits(IDS[:length]), whole[:length], atol=1e-5)
    changed = reference.logits([*IDS[:6], 1, 2, 3, 4])
    np.testing.assert_allclose(changed[:6], whole[:6], atol=1e-5)
    assert np.abs(changed[6:] - whole[6:]).max() > 0.1


@BOTH
@settings(max_examples=25)
@given(data=st.data())
def test_texts_beside_one_another_and_chosen_positions_give_the_same_rows(facts: Facts, data: st.DataObject) -> None:
    reference = make(facts, random_weights(facts).__getitem__)
    tokens = st.lists(st.integers(0, 39), min_size=1, max_size=8)
    texts = data.draw(st.lists(tokens, min_size=1, max_size=4))
    positions = [data.draw(st.lists(st.integers(0, len(text) - 1), max_size=5)) for text in texts]
    together = reference.logits_of_all(texts, positions)
    assert [array.shape for array in together] == [(len(rows), 40) for rows in positions]
    for text, rows, found in zip(texts, positions, together, strict=True):
        np.testing.assert_allclose(found, reference.logits(text)[rows], atol=1e-5)
        np.testing.assert_allclose(found, reference.logits(text, rows), atol=1e-5)


@BOTH
@pytest.mark.parametrize("ids", [[], [40], [-1, 3]], ids=["none", "beyond the vocabulary", "negative"])
def test_tokens_that_cannot_be_are_refused(facts: Facts, ids: list[int]) -> None:
    with pytest.raises(ValueError, match="0 to 39"):
        make(facts, random_weights(facts).__getitem__).logits(ids)


@BOTH
def test_weights_are_let_go_before_the_next_are_read(facts: Facts) -> None:
    stored, alive, most = random_weights(facts), 0, 0

    def weight(name: str) -> np.ndarray:
        nonlocal alive, most
        value = stored[name].copy()
        size = value.nbytes

        def gone() -> None:
            nonlocal alive
            alive -= size

        weakref.finalize(value, gone)
        alive += size
        most = max(most, alive)
        return value

    make(facts, weight).logits(IDS)
    largest = max(value.nbytes for value in stored.values())
    assert alive == 0
    assert most <= 1.1 * largest  # a matrix and its bias


def test_the_reference_of_a_checkpoint_is_chosen_by_its_facts(tmp_path: Path) -> None:
    llama, mpt = write_tiny_checkpoint(tmp_path / "llama"), write_tiny_mpt(tmp_path / "mpt", shards=2)
    for folder, weights, kind in (
        (llama, make_tiny_weights(), LlamaReference),
        (mpt, make_tiny_mpt_weights(), MptReference),
    ):
        checkpoint = SafetensorsFolder(folder)
        reference = make_reference(checkpoint)
        assert isinstance(reference, kind)
        expected = make(checkpoint.facts, weights.__getitem__).logits(IDS)
        np.testing.assert_array_equal(reference.logits(IDS), expected)
    gguf = make_reference(GgufFile(write_tiny_gguf(tmp_path / "tiny.gguf")))
    np.testing.assert_array_equal(gguf.logits(IDS), make_reference(SafetensorsFolder(llama)).logits(IDS))


def test_a_weight_that_is_no_number_is_named(tmp_path: Path) -> None:
    weights = make_tiny_mpt_weights()
    weights["transformer.blocks.1.ffn.up_proj.weight"][3, 4] = np.nan
    reference = make_reference(SafetensorsFolder(write_tiny_mpt(tmp_path / "c", weights=weights)))
    with pytest.raises(Terminal, match=r"blocks\.1\.ffn\.up_proj") as failure:
        reference.logits(IDS)
    assert failure.value.reason is Reason.CHECKPOINT_CORRUPT
