"""TensorRT-LLM checkpoints as they are: recognised, checked rank by rank, and taken for their own recipe alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hotstart.engines.architectures import CTRANSLATE2, TENSORRT_LLM, check_buildable
from hotstart.engines.builder.prepare import prepare
from hotstart.engines.checkpoints.checkpoint import count_parameters
from hotstart.engines.checkpoints.choose import ListedFile, choose_files
from hotstart.engines.checkpoints.opening import check_checkpoint, open_checkpoint
from hotstart.engines.checkpoints.places import parse_uri
from hotstart.engines.checkpoints.safetensors_folder import SafetensorsFolder
from hotstart.engines.checkpoints.source import HubAccess, open_source
from hotstart.engines.checkpoints.trtllm_folder import Layout, TrtllmFolder, check_as_it_is, check_recipe_is_layout
from hotstart.engines.errors import Reason, Terminal
from hotstart.engines.recipe import EngineRecipe, Toolchain
from hotstart.engines.runtimes.tensorrt_llm.tensorrt_llm import TensorRTLLM
from hotstart.engines.s3 import StorePlace
from hotstart.exchange.messages import ServingOptions
from safetensors.numpy import load_file, save_file

from tests.support.tiny_checkpoint import write_tiny_checkpoint
from tests.support.trtllm_checkpoint import write_trtllm_checkpoint

QKV = "transformer.layers.0.attention.qkv.weight"
SERVING = ServingOptions(max_input_tokens=96, max_new_tokens=32)


def open_and_check(folder: Path) -> TrtllmFolder:
    files = tuple(ListedFile(path.name, path.stat().st_size) for path in folder.iterdir())
    checkpoint = open_checkpoint(folder, choose_files(files, where=str(folder)))
    check_checkpoint(checkpoint, SERVING)
    assert isinstance(checkpoint, TrtllmFolder)
    return checkpoint


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_are_recognised_with_their_layout_and_sizes(tmp_path: Path, ranks: int) -> None:
    checkpoint = open_and_check(write_trtllm_checkpoint(tmp_path, ranks))
    assert checkpoint.format == "tensorrt_llm"
    assert checkpoint.layout == Layout(ranks, "float16", "none")
    facts = checkpoint.facts
    assert (facts.architecture, facts.layers, facts.heads, facts.kv_heads) == ("MPTForCausalLM", 2, 4, 2)
    assert facts.to_json()["kvHeads"] == 2
    assert len(checkpoint.shapes()) == ranks * (3 + 2 * 6)
    name = f"rank{ranks - 1}/transformer.ln_f.weight"
    np.testing.assert_array_equal(checkpoint.tensor(name), np.ones(64, np.float32))


def test_its_weights_are_counted_once_however_many_ranks_hold_them(tmp_path: Path) -> None:
    counts = {count_parameters(open_and_check(write_trtllm_checkpoint(tmp_path / str(n), n)).facts) for n in (1, 2)}
    assert counts == {512 * 64 * 2 + 64 + 2 * (2 * 64 + (64 + 2 * 32) * 64 + 64 * 64 + 2 * 128 * 64)}


def test_quantized_weights_are_taken_in_the_layout_of_the_kernels(tmp_path: Path) -> None:
    checkpoint = open_and_check(write_trtllm_checkpoint(tmp_path, 2, packed=True))
    assert checkpoint.layout == Layout(2, "float16", "int8_weight_only")
    plain = open_and_check(write_trtllm_checkpoint(tmp_path / "plain", 2))
    assert count_parameters(checkpoint.facts) == count_parameters(plain.facts)


def change_rank(rank: int, change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / f"rank{rank}.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return write


def config(**changes: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        written = write_trtllm_checkpoint(folder / "other", 2, **changes) / "config.json"
        (folder / "config.json").write_text(written.read_text())

    return write


REFUSED: dict[str, tuple[Callable[[Path], object], Reason, str]] = {
    "a rank is missing": (
        lambda folder: (folder / "rank1.safetensors").unlink(),
        Reason.CHECKPOINT_INCOMPLETE,
        "rank1.safetensors is missing; config.json says mapping.world_size 2",
    ),
    "a rank too many": (
        lambda folder: (folder / "rank2.safetensors").write_bytes((folder / "rank1.safetensors").read_bytes()),
        Reason.CHECKPOINT_INCOMPLETE,
        "there are 3 rank files",
    ),
    "a rank is cut short": (
        lambda folder: (folder / "rank1.safetensors").write_bytes((folder / "rank0.safetensors").read_bytes()[:-9]),
        Reason.CHECKPOINT_CORRUPT,
        "rank1.safetensors is cut short",
    ),
    "a rank lacks a tensor": (
        change_rank(1, lambda tensors: tensors.pop("transformer.layers.1.mlp.fc.weight")),
        Reason.CHECKPOINT_CORRUPT,
        "rank1 and rank0 differ in the tensor transformer.layers.1.mlp.fc.weight",
    ),
    "a rank of a conversion for more ranks": (
        change_rank(
            1, lambda t: t.update({"transformer.layers.0.attention.qkv.weight": np.ones((48, 64), np.float16)})
        ),
        Reason.CHECKPOINT_CORRUPT,
        "attention.qkv.weight of rank1 has shape [48, 64], the config says [64, 64]",
    ),
    "more layers than weights": (config(num_hidden_layers=3), Reason.CHECKPOINT_CORRUPT, "has 2 layers, the config"),
    "a size is missing": (config(hidden_size=...), Reason.CHECKPOINT_CORRUPT, "hidden_size is None"),
    "a mapping that is none": (config(mapping="2"), Reason.CHECKPOINT_CORRUPT, "mapping is no object"),
    "pipeline parallelism": (
        config(mapping={"world_size": 2, "tp_size": 1, "pp_size": 2}),
        Reason.UNSUPPORTED_ARCHITECTURE,
        "only tensor parallelism is supported",
    ),
    "a quantization that nobody asks for": (
        config(quantization={"quant_algo": "NVFP4"}),
        Reason.UNSUPPORTED_ARCHITECTURE,
        "quantized with NVFP4; known are W8A16, W4A16, FP8",
    ),
    "another architecture": (
        config(architecture="WhisperEncoder"),
        Reason.UNSUPPORTED_ARCHITECTURE,
        "architecture is WhisperEncoder; known are BloomForCausalLM",
    ),
}


@pytest.mark.parametrize(("spoil", "reason", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_of_one_piece_is_named(
    tmp_path: Path, spoil: Callable[[Path], object], reason: Reason, words: str
) -> None:
    spoil(write_trtllm_checkpoint(tmp_path, 2))
    with pytest.raises(Terminal) as failure:
        open_and_check(tmp_path)
    assert failure.value.reason is reason
    assert words in failure.value.message, failure.value.message


def recipe(**changes: Any) -> EngineRecipe:
    toolchain = Toolchain("none", 1, TENSORRT_LLM, "1.2.1")
    return replace(EngineRecipe(toolchain, dtype="float16", quantization="none", tensor_parallel=2), **changes)


def test_only_its_own_recipe_takes_it() -> None:
    layout = Layout(2, "float16", "none")
    check_recipe_is_layout(layout, recipe())
    for change in ({"tensor_parallel": 1}, {"dtype": "bfloat16"}, {"quantization": "int8_weight_only"}):
        with pytest.raises(Terminal, match="already converted, for tensorParallel 2, dtype float16") as failure:
            check_recipe_is_layout(layout, recipe(**change))
        assert failure.value.reason is Reason.UNSUPPORTED_RECIPE
        assert str(next(iter(change.values()))) in failure.value.message


def test_it_is_converted_into_itself_for_its_own_recipe(tmp_path: Path) -> None:
    checkpoint = open_and_check(write_trtllm_checkpoint(tmp_path / "c", 2))
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
    TensorRTLLM().convert(checkpoint, recipe(), tmp_path / "good", lambda share: None, tmp_path / "c")
    for name in ("config.json", "rank0.safetensors", "rank1.safetensors"):
        assert (tmp_path / "good/checkpoint" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()
    with pytest.raises(Terminal, match="already converted, for tensorParallel 2"):
        TensorRTLLM().convert(
            checkpoint, recipe(tensor_parallel=1), tmp_path / "bad", lambda share: None, tmp_path / "c"
        )


def test_another_checkpoint_is_not_taken_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(Terminal, match="this one is of the format safetensors"):
        check_as_it_is(SafetensorsFolder(write_tiny_checkpoint(tmp_path)), recipe())


def test_ctranslate2_refuses_it(tmp_path: Path) -> None:
    checkpoint = open_and_check(write_trtllm_checkpoint(tmp_path))
    check_buildable(checkpoint.facts.architecture, checkpoint.format, TENSORRT_LLM)
    with pytest.raises(Terminal, match="already converted for TensorRT-LLM, and the runtime ctranslate2"):
        check_buildable(checkpoint.facts.architecture, checkpoint.format, CTRANSLATE2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("heads_only", [True, False], ids=["inspect", "convert"])
def test_weights_that_nobody_else_reads_are_scanned_as_they_are_read(
    tmp_path: Path, value: float, heads_only: bool
) -> None:
    folder = write_trtllm_checkpoint(tmp_path / "c", 2)
    name = "transformer.layers.1.mlp.proj.weight"
    change_rank(1, lambda tensors: tensors[name].__setitem__((3, 5), value))(folder)
    with pytest.raises(Terminal, match=f"The tensor {name} of rank1.safetensors holds NaN or Inf") as failure:
        prepare_it(folder, tmp_path, heads_only=heads_only)
    assert failure.value.reason is Reason.CHECKPOINT_CORRUPT


def prepare_it(folder: Path, tmp_path: Path, *, heads_only: bool = True) -> None:
    """As a Job does."""
    (tmp_path / "target").mkdir()
    source = open_source(parse_uri(f"file://{folder}", local=True), StorePlace(""), HubAccess())
    prepare(
        source, tmp_path / "target", SERVING, on_choice=lambda size: None, on_bytes=lambda count: None,
        heads_only=heads_only, runtime=TENSORRT_LLM,
    )  # fmt: skip
