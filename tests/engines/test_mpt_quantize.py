"""Weight-only quantization around TensorRT-LLM's operation, which does not run here: a stand-in does its arithmetic.

What is held: which tensors go through it, in which direction, type and shape, what is stored of its answer under which
names, and what is said where it is missing. Not its layout for the kernels.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hotstart.engines.checkpoints.checkpoint import mpt_facts
from hotstart.engines.checkpoints.safetensors_folder import SafetensorsFolder
from hotstart.engines.errors import Reason, Terminal
from hotstart.engines.recipe import EngineRecipe, Toolchain
from hotstart.engines.reference.mpt import MptReference
from hotstart.engines.runtimes.tensorrt_llm.mpt_convert import convert_mpt
from hotstart.engines.runtimes.tensorrt_llm.quantize import load_quantize, make_quantize

from tests.support.mpt_reassembly import read_config, read_facts, read_rank, reassemble
from tests.support.tiny_mpt import TinyMptShape, make_tiny_mpt_weights, write_tiny_mpt
from tests.support.weight_only import make_stand_in

SHAPE = TinyMptShape(width=256, heads=8, kv_heads=4)
QUANTIZED = ("attention.qkv", "attention.dense", "mlp.fc", "mlp.proj")
#: Half a step of the coarsest output, relative to its largest weight, with room for 16-bit scales.
HALF_STEP = {"int8_weight_only": 0.6 / 127, "int4_weight_only": 0.6 / 7}
ALGORITHM = {"int8_weight_only": "W8A16", "int4_weight_only": "W4A16"}


def make_recipe(quantization: str, dtype: str = "float16", ranks: int = 1) -> EngineRecipe:
    return EngineRecipe(Toolchain("hotstart-mpt", 1, "tensorrt_llm", "1.2.1"), dtype, quantization, ranks)


def convert(folder: Path, recipe: EngineRecipe) -> Path:
    target = folder.with_name("converted")
    operation = make_stand_in(recipe.quantization)
    convert_mpt(SafetensorsFolder(folder), recipe, target, lambda share: None, quantize=operation)
    return target


@pytest.mark.parametrize("quantization", ["int8_weight_only", "int4_weight_only"])
@pytest.mark.parametrize(("dtype", "ranks"), [("float16", 1), ("float16", 4), ("bfloat16", 2)])
def test_every_linear_weight_is_within_half_a_step(quantization: str, dtype: str, ranks: int, tmp_path: Path) -> None:
    weights = make_tiny_mpt_weights(SHAPE, seed=5)
    recipe = make_recipe(quantization, dtype, ranks)
    converted = convert(write_tiny_mpt(tmp_path / "mpt", shape=SHAPE, weights=weights), recipe)
    assert read_config(converted)["quantization"] == {
        "quant_algo": ALGORITHM[quantization],
        "kv_cache_quant_algo": None,
    }
    found = reassemble(converted)
    assert found.keys() == weights.keys()
    for name, value in weights.items():
        linear = ".attn." in name or ".ffn." in name
        largest = np.abs(value).max(axis=1, keepdims=True) if linear else np.abs(value)
        rounding = 2**-7 if dtype == "bfloat16" else 2**-10
        allowed = largest * (HALF_STEP[quantization] + rounding if linear else rounding) + 2**-24
        assert (np.abs(found[name] - value) <= allowed).all(), name


@pytest.mark.parametrize(("quantization", "columns"), [("int8_weight_only", 1), ("int4_weight_only", 2)])
def test_what_is_stored_of_each_weight(quantization: str, columns: int, tmp_path: Path) -> None:
    shape = TinyMptShape(width=256, heads=8, kv_heads=4, bias=True)
    recipe = make_recipe(quantization, ranks=2)
    tensors = read_rank(convert(write_tiny_mpt(tmp_path / "mpt", shape=shape), recipe) / "rank1.safetensors")
    sizes = {"attention.qkv": (256, 256), "attention.dense": (128, 256), "mlp.fc": (256, 512), "mlp.proj": (512, 256)}
    for name, (inputs, outputs) in sizes.items():
        prefix = f"transformer.layers.1.{name}"
        assert tensors[f"{prefix}.weight"].dtype == np.int8
        assert tensors[f"{prefix}.weight"].shape == (inputs, outputs // columns)
        assert tensors[f"{prefix}.per_channel_scale"].shape == (outputs,)
        assert tensors[f"{prefix}.bias"].shape == (outputs,)
    scales = [name for name in tensors if name.endswith("per_channel_scale")]
    assert len(scales) == 2 * len(QUANTIZED)
    kept = {name for name, value in tensors.items() if value.dtype != np.int8} - set(scales)
    assert {name for name in kept if name.endswith(".weight")} == {
        "transformer.vocab_embedding.weight",
        "lm_head.weight",
        "transformer.ln_f.weight",
        *(f"transformer.layers.{i}.{norm}.weight" for i in (0, 1) for norm in ("input_layernorm", "post_layernorm")),
    }


def test_an_int8_network_still_finds_the_same_words(tmp_path: Path) -> None:
    weights = make_tiny_mpt_weights(SHAPE, seed=11)
    folder = write_tiny_mpt(tmp_path / "mpt", shape=SHAPE, weights=weights)
    converted = convert(folder, make_recipe("int8_weight_only", ranks=2))
    ids = list(range(100, 140))
    expected = MptReference(mpt_facts(SafetensorsFolder(folder)), weights.__getitem__).logits(ids)
    found = MptReference(read_facts(converted), reassemble(converted).__getitem__).logits(ids)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    best = np.sort(expected, axis=1)
    sure = best[:, -1] - best[:, -2] > 2 * np.abs(found - expected).max()
    assert sure.sum() > 5
    np.testing.assert_array_equal(found.argmax(axis=1)[sure], expected.argmax(axis=1)[sure])


def test_without_tensorrt_llm_it_is_said_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_llm", None)
    folder = write_tiny_mpt(tmp_path / "mpt", shape=SHAPE)
    with pytest.raises(Terminal) as refused:
        convert_mpt(
            SafetensorsFolder(folder), make_recipe("int8_weight_only"), tmp_path / "converted", lambda share: None
        )
    assert refused.value.reason is Reason.UNSUPPORTED_RECIPE
    assert "only the TensorRT-LLM builder image has" in refused.value.message
    assert not (tmp_path / "converted").exists()


def test_nothing_is_loaded_where_nothing_is_quantized() -> None:
    assert load_quantize("none") is None


class FakeTensor:
    """As much of a torch tensor as the call touches."""

    def __init__(self, values: npt.NDArray[Any], dtype: str) -> None:
        self.values, self.dtype = values, dtype

    def view(self, dtype: str) -> FakeTensor:
        return FakeTensor(self.values, dtype)

    def numpy(self) -> npt.NDArray[Any]:
        return self.values


class FakeTorch:
    """Has the operation where tensorrt_llm registers it; the facts' names, types and order of arguments."""

    int8, quint4x2, int16, float16, bfloat16 = "int8", "quint4x2", "int16", "float16", "bfloat16"

    def __init__(self, error: RuntimeError | None = None) -> None:
        self.calls: list[tuple[tuple[int, ...], str, str]] = []
        self._error = error
        operation = types.SimpleNamespace(symmetric_quantize_last_axis_of_batched_matrix=self._quantize)
        self.ops = types.SimpleNamespace(trtllm=operation)

    @staticmethod
    def from_numpy(values: npt.NDArray[Any]) -> FakeTensor:
        assert values.dtype == np.int16
        assert values.flags.c_contiguous
        return FakeTensor(values, "int16")

    def _quantize(self, weight: FakeTensor, kind: str) -> list[FakeTensor]:
        if self._error:
            raise self._error
        self.calls.append((weight.values.shape, weight.dtype, kind))
        quantization = {"int8": "int8_weight_only", "quint4x2": "int4_weight_only"}[kind]
        packed, scales = make_stand_in(quantization)(weight.values.view(np.uint16), weight.dtype)
        return [FakeTensor(packed, "int8"), FakeTensor(scales.view(np.int16), weight.dtype)]


@pytest.mark.parametrize(("quantization", "kind"), [("int8_weight_only", "int8"), ("int4_weight_only", "quint4x2")])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_operation_is_called_as_the_facts_say(quantization: str, kind: str, dtype: str) -> None:
    torch = FakeTorch()
    weight = np.random.default_rng(0).integers(0, 0x3C00, (128, 64), dtype=np.uint16)
    packed, scales = make_quantize(torch, quantization)(weight, dtype)
    assert torch.calls == [((128, 64), dtype, kind)]
    expected = make_stand_in(quantization)(weight, dtype)
    np.testing.assert_array_equal(packed, expected[0])
    np.testing.assert_array_equal(scales, expected[1])
    assert scales.dtype == np.uint16


def test_what_the_operation_refuses_is_passed_on() -> None:
    quantize = make_quantize(FakeTorch(RuntimeError("Number of rows must be a multiple")), "int8_weight_only")
    with pytest.raises(Terminal, match=r"a weight of \[60, 64\] to int8_weight_only \(Number of rows"):
        quantize(np.zeros((60, 64), np.uint16), "float16")
