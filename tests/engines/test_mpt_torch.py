"""MPT conversions that need PyTorch: from ``pytorch_model.bin``, and quantized through an operation that torch calls.

The operation is registered where tensorrt_llm registers its own, but computes as the stand-in does.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hotstart.engines.checkpoints.safetensors_folder import SafetensorsFolder
from hotstart.engines.checkpoints.torch_folder import TorchFolder
from hotstart.engines.errors import Terminal
from hotstart.engines.recipe import EngineRecipe, Toolchain
from hotstart.engines.runtimes.tensorrt_llm.mpt_convert import convert_mpt

from tests.support.tiny_mpt import TinyMptShape, make_tiny_mpt_weights, write_tiny_mpt
from tests.support.weight_only import make_stand_in

torch: Any = pytest.importorskip("torch", reason="torch is installed from requirements/torch.lock")

SHAPE = TinyMptShape(width=256, heads=8, kv_heads=4, bias=True)
OPERATION = "symmetric_quantize_last_axis_of_batched_matrix"


def make_recipe(dtype: str = "float16", ranks: int = 2, quantization: str = "none") -> EngineRecipe:
    return EngineRecipe(Toolchain("hotstart-mpt", 1, "tensorrt_llm", "1.2.1"), dtype, quantization, ranks)


def save_as_torch(folder: Path, stored: str) -> TorchFolder:
    """The folder's weights as pytorch_model.bin, in place of its safetensors."""
    weights = SafetensorsFolder(folder)
    state = {name: torch.from_numpy(weights.tensor(name)).to(getattr(torch, stored)) for name in weights.shapes()}
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return TorchFolder(folder, ("pytorch_model.bin",))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_torch_checkpoint_converts_to_the_same_bytes(stored: str, dtype: str, tmp_path: Path) -> None:
    folder = write_tiny_mpt(tmp_path / "mpt", shape=SHAPE, dtype=stored)
    convert_mpt(SafetensorsFolder(folder), make_recipe(dtype), tmp_path / "one", lambda share: None)
    convert_mpt(save_as_torch(folder, stored), make_recipe(dtype), tmp_path / "other", lambda share: None)
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


def test_a_torch_checkpoint_with_nan_is_refused(tmp_path: Path) -> None:
    weights = make_tiny_mpt_weights(SHAPE)
    weights["transformer.wte.weight"][511, 255] = np.nan
    folder = write_tiny_mpt(tmp_path / "mpt", shape=SHAPE, weights=weights)
    with pytest.raises(Terminal, match=r"tensor transformer\.wte\.weight holds NaN or Inf"):
        convert_mpt(save_as_torch(folder, "bfloat16"), make_recipe(), tmp_path / "converted", lambda share: None)


@pytest.fixture
def tensorrt_llm(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, ...]]]:
    """The operation as tensorrt_llm's own is called; yields what it was called with."""
    calls: list[tuple[Any, ...]] = []

    def quantize(weight: Any, kind: Any) -> list[Any]:
        calls.append((tuple(weight.shape), weight.dtype, weight.is_contiguous(), weight.device.type, kind))
        quantization = "int8_weight_only" if kind == torch.int8 else "int4_weight_only"
        dtype = str(weight.dtype).removeprefix("torch.")
        packed, scales = make_stand_in(quantization)(weight.view(torch.int16).numpy().view(np.uint16), dtype)
        return [torch.from_numpy(packed), torch.from_numpy(scales.view(np.int16)).view(weight.dtype)]

    library = torch.library.Library("trtllm", "FRAGMENT")
    library.define(f"{OPERATION}(Tensor weight, ScalarType quant_type) -> Tensor[]")
    library.impl(OPERATION, quantize, "CPU")
    monkeypatch.setitem(sys.modules, "tensorrt_llm", types.ModuleType("tensorrt_llm"))
    yield calls
    library._destroy()


@pytest.mark.parametrize(("quantization", "kind"), [("int8_weight_only", "int8"), ("int4_weight_only", "quint4x2")])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_torch_calls_the_operation(
    quantization: str, kind: str, dtype: str, tmp_path: Path, tensorrt_llm: list[tuple[Any, ...]]
) -> None:
    checkpoint = SafetensorsFolder(write_tiny_mpt(tmp_path / "mpt", shape=SHAPE))
    recipe = make_recipe(dtype, 2, quantization)
    convert_mpt(checkpoint, recipe, tmp_path / "one", lambda share: None)
    sizes = [(256, 256), (256, 256), (128, 256), (128, 256), (256, 512), (256, 512), (512, 256), (512, 256)]
    assert tensorrt_llm == [
        (size, getattr(torch, dtype), True, "cpu", getattr(torch, kind)) for _ in range(2) for size in sizes
    ]
    stand_in = make_stand_in(quantization)
    convert_mpt(checkpoint, recipe, tmp_path / "other", lambda share: None, quantize=stand_in)
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


def test_a_tensorrt_llm_without_the_operation_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_llm", types.ModuleType("tensorrt_llm"))
    checkpoint = SafetensorsFolder(write_tiny_mpt(tmp_path / "mpt", shape=SHAPE))
    recipe = make_recipe(quantization="int8_weight_only")
    with pytest.raises(Terminal, match=r"cannot be loaded \(AttributeError.*must be that of the release"):
        convert_mpt(checkpoint, recipe, tmp_path / "converted", lambda share: None)
