"""What an MPT conversion refuses, each time with tensor, field or bytes; and that nothing half-done is left behind."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hotstart.engines.checkpoints.safetensors_folder import SafetensorsFolder
from hotstart.engines.errors import EngineError, Reason, Retryable, Terminal
from hotstart.engines.recipe import EngineRecipe, Toolchain
from hotstart.engines.runtimes.tensorrt_llm.mpt_convert import convert_mpt

from tests.support.tiny_checkpoint import Weights, write_tiny_checkpoint
from tests.support.tiny_mpt import TinyMptShape, make_tiny_mpt_weights, write_tiny_mpt

TOOLCHAIN = Toolchain("hotstart-mpt", 1, "tensorrt_llm", "1.2.1")
DOWN = "transformer.blocks.1.ffn.down_proj.weight"


def convert(folder: Path, **recipe: Any) -> Path:
    fields = {"dtype": "float16", "quantization": "none", "tensor_parallel": 1} | recipe
    target = folder.parent / "converted"
    convert_mpt(SafetensorsFolder(folder), EngineRecipe(TOOLCHAIN, **fields), target, lambda share: None)
    return target


def refused(folder: Path, **recipe: Any) -> EngineError:
    """The error of a conversion that must fail and leave nothing."""
    with pytest.raises(EngineError) as error:
        convert(folder, **recipe)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    return error.value


def with_value(value: float, name: str = DOWN) -> Weights:
    weights = make_tiny_mpt_weights()
    weights[name].reshape(-1)[-3] = value
    return weights


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("ranks", [1, 4])
def test_nan_and_infinity_are_named(value: float, stored: str, dtype: str, ranks: int, tmp_path: Path) -> None:
    folder = write_tiny_mpt(tmp_path / "mpt", weights=with_value(value), dtype=stored)
    error = refused(folder, dtype=dtype, tensor_parallel=ranks)
    assert isinstance(error, Terminal)
    assert error.reason is Reason.CHECKPOINT_CORRUPT
    assert f"The tensor {DOWN} holds NaN or Inf" in error.message


@pytest.mark.parametrize(("stored", "value"), [("float32", 65520.0), ("float32", -1e9), ("bfloat16", 2.0**16)])
def test_a_weight_beyond_float16_is_named_with_its_size(stored: str, value: float, tmp_path: Path) -> None:
    error = refused(write_tiny_mpt(tmp_path / "mpt", weights=with_value(value), dtype=stored))
    assert error.reason is Reason.UNSUPPORTED_RECIPE
    assert error.message == (
        f"The tensor {DOWN} holds {abs(value):g}, which float16 cannot: set engine.dtype to bfloat16."
    )


def test_the_largest_float16_is_none_too_large(tmp_path: Path) -> None:
    assert convert(write_tiny_mpt(tmp_path / "mpt", weights=with_value(65519.0))).is_dir()


def test_what_float16_cannot_hold_bfloat16_can(tmp_path: Path) -> None:
    folder = write_tiny_mpt(tmp_path / "mpt", weights=with_value(1e9))
    assert convert(folder, dtype="bfloat16").is_dir()


def test_a_bias_that_overflows_in_its_new_place_names_both_tensors(tmp_path: Path) -> None:
    shape = TinyMptShape(bias=True)
    weights = make_tiny_mpt_weights(shape)
    weights["transformer.blocks.0.norm_2.bias"][:] = 60000
    weights["transformer.blocks.0.ffn.up_proj.weight"][5] = 1
    error = refused(write_tiny_mpt(tmp_path / "mpt", weights=weights, shape=shape))
    assert "transformer.blocks.0.ffn.up_proj.weight x transformer.blocks.0.norm_2.bias holds 3.84e+06" in error.message


RECIPES: dict[str, tuple[TinyMptShape, dict[str, Any], str]] = {
    "dtype": (TinyMptShape(), {"dtype": "float32"}, "engine.dtype is float32; .* float16, bfloat16"),
    "quantization": (TinyMptShape(), {"quantization": "fp8"}, "engine.quantization is fp8; .*int8_weight_only"),
    "ranks and heads": (TinyMptShape(), {"tensor_parallel": 3}, "tensorParallel is 3; with 4 attention heads"),
    "no rank": (TinyMptShape(), {"tensor_parallel": 0}, "tensorParallel is 0;"),
    "ranks and key-value heads": (
        TinyMptShape(width=96, heads=12, kv_heads=3),
        {"tensor_parallel": 2},
        "tensorParallel is 2; .* 3 key-value heads",
    ),
    "sizes of weight-only": (
        TinyMptShape(width=96, heads=4, kv_heads=4),
        {"quantization": "int8_weight_only"},
        "multiples of 64 on each rank, here are 96 and 288 on 1: set engine.quantization to none",
    ),
    "sizes of weight-only on ranks": (
        TinyMptShape(kv_heads=4),
        {"quantization": "int4_weight_only", "tensor_parallel": 2},
        "here are 64 and 192 on 2",
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_that_does_not_go_with_the_network(name: str, tmp_path: Path) -> None:
    shape, recipe, words = RECIPES[name]
    error = refused(write_tiny_mpt(tmp_path / "mpt", shape=shape), **recipe)
    assert error.reason is Reason.UNSUPPORTED_RECIPE
    assert re.search(words, error.message)


def change_config(folder: Path, old: str, new: str) -> Path:
    path = folder / "config.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return folder


def test_another_width_of_the_mlp_is_refused(tmp_path: Path) -> None:
    error = refused(write_tiny_mpt(tmp_path / "mpt", shape=TinyMptShape(expansion=2)))
    assert error.reason is Reason.UNSUPPORTED_ARCHITECTURE
    assert "The MLP is 128 wide, TensorRT-LLM's MPT has 4 times d_model (64)" in error.message


def test_another_epsilon_is_refused(tmp_path: Path) -> None:
    folder = change_config(write_tiny_mpt(tmp_path / "mpt"), '"no_bias"', '"norm_eps": 1e-6, "no_bias"')
    error = refused(folder)
    assert error.reason is Reason.UNSUPPORTED_ARCHITECTURE
    assert "epsilon is 1e-06, TensorRT-LLM's MPT has 1e-05" in error.message


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    folder = write_tiny_mpt(tmp_path / "mpt", weights=make_tiny_mpt_weights(TinyMptShape(kv_heads=4)))
    error = refused(folder)
    assert error.reason is Reason.CHECKPOINT_CORRUPT
    assert "transformer.blocks.0.attn.Wqkv.weight has shape [192, 64], the config says [128, 64]" in error.message


def test_another_family_is_refused(tmp_path: Path) -> None:
    assert refused(write_tiny_checkpoint(tmp_path / "llama")).reason is Reason.UNSUPPORTED_ARCHITECTURE


def test_a_disk_too_small_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_tiny_mpt(tmp_path / "mpt")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    error = refused(folder)
    assert isinstance(error, Retryable)
    assert error.reason is Reason.DISK_FULL
    assert f"The scratch disk {tmp_path} has 0.00 GiB free" in error.message


def full_disk(after: int) -> Callable[[int, bytes, int], int]:
    """``os.pwrite`` on a disk that is full after some writes; until then it writes less than it is given."""
    write, calls = os.pwrite, iter(range(after))

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        if next(calls, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[:777], offset)

    return pwrite


@pytest.mark.parametrize("after", [0, 1, 50])
def test_a_disk_that_fills_up_meanwhile_is_said_too(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tiny_mpt(tmp_path / "mpt")
    monkeypatch.setattr(os, "pwrite", full_disk(after))
    error = refused(folder)
    assert isinstance(error, Retryable)
    assert "0.00 GiB are needed" in error.message


def test_short_writes_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_tiny_mpt(tmp_path / "mpt")
    whole = {path.name: path.read_bytes() for path in convert(folder).iterdir()}
    shutil.rmtree(tmp_path / "converted")
    monkeypatch.setattr(os, "pwrite", full_disk(100_000))
    assert {path.name: path.read_bytes() for path in convert(folder).iterdir()} == whole


def test_what_a_killed_conversion_left_is_cleared(tmp_path: Path) -> None:
    folder = write_tiny_mpt(tmp_path / "mpt")
    left = tmp_path / ".converted.partial"
    left.mkdir()
    (left / "rank0.safetensors").write_bytes(b"half")
    assert sorted(path.name for path in convert(folder).iterdir()) == ["config.json", "rank0.safetensors"]
    assert not left.exists()


def test_a_folder_with_files_is_not_written_over(tmp_path: Path) -> None:
    folder = write_tiny_mpt(tmp_path / "mpt")
    (tmp_path / "converted").mkdir()
    (tmp_path / "converted" / "mine.txt").write_text("mine")
    with pytest.raises(Terminal, match="converted holds files already") as error:
        convert(folder)
    assert error.value.reason is Reason.INVALID_SPEC
    assert [path.name for path in (tmp_path / "converted").iterdir()] == ["mine.txt"]
    assert not (tmp_path / ".converted.partial").exists()
