"""PyTorch checkpoints: the same tensors as from safetensors, and no code, little memory, no torch where it can be."""

from __future__ import annotations

import importlib.util
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hotstart.engines.builder.prepare import prepare
from hotstart.engines.checkpoints import source as source_module
from hotstart.engines.checkpoints.checkpoint import Checkpoint, check_shapes, read_weight
from hotstart.engines.checkpoints.choose import ListedFile, choose_files
from hotstart.engines.checkpoints.opening import check_checkpoint, open_checkpoint
from hotstart.engines.checkpoints.places import parse_uri
from hotstart.engines.checkpoints.safetensors_folder import SafetensorsFolder
from hotstart.engines.checkpoints.source import HubAccess, Source, open_source
from hotstart.engines.checkpoints.torch_folder import TorchFolder, load_tensors
from hotstart.engines.checkpoints.torch_head import read_torch_head
from hotstart.engines.errors import Reason, Terminal
from hotstart.engines.s3 import StorePlace
from hotstart.exchange.messages import ServingOptions
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.hub import COMMIT, REPOSITORY, Hub, serve_hub
from tests.support.tiny_checkpoint import TinyShape, make_tiny_weights, write_tiny_checkpoint
from tests.support.torch_checkpoint import to_torch, write_torch_weights

SERVING = ServingOptions(max_input_tokens=96, max_new_tokens=32)


def open_and_check(folder: Path) -> Checkpoint:
    files = tuple(ListedFile(path.name, path.stat().st_size) for path in folder.iterdir())
    checkpoint = open_checkpoint(folder, choose_files(files, where=str(folder)))
    check_checkpoint(checkpoint, SERVING)
    return checkpoint


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("shards", [1, 3])
def test_tensors_are_those_of_safetensors(tmp_path: Path, dtype: str, shards: int) -> None:
    weights = make_tiny_weights()
    stored = "float32" if dtype == "float64" else dtype
    plain = SafetensorsFolder(write_tiny_checkpoint(tmp_path / "s", dtype=stored))
    pickled = open_and_check(
        write_torch_weights(write_tiny_checkpoint(tmp_path / "t"), weights, dtype=dtype, shards=shards)
    )
    assert isinstance(pickled, TorchFolder)
    assert pickled.shapes() == plain.shapes()
    assert (pickled.facts, pickled.eos_ids, pickled.bos_id) == (plain.facts, plain.eos_ids, plain.bos_id)
    for name in plain.shapes():
        np.testing.assert_array_equal(read_weight(pickled, name), read_weight(plain, name))


def test_the_head_lists_what_torch_loads(tmp_path: Path) -> None:
    view = torch.arange(24.0).reshape(4, 6)
    values = {
        "view": view[1:3].T, "scalar": torch.tensor(3.0), "half": torch.ones(5, dtype=torch.float16),
        "parameter": torch.nn.Parameter(torch.ones(2, 3)), "mask": torch.ones(3, dtype=torch.bool),
        "step": 7, "tied": view, "empty": torch.zeros(0, 4),
    }  # fmt: skip
    torch.save(OrderedDict(values), tmp_path / "model.pt")
    loaded = load_tensors(tmp_path / "model.pt")
    floats = {name: tuple(t.shape) for name, t in loaded.items() if t.dtype.is_floating_point}
    assert {name: t.shape for name, t in read_torch_head(tmp_path / "model.pt").items()} == floats
    assert floats.keys() == {"view", "scalar", "half", "parameter", "tied", "empty"}


@pytest.mark.parametrize("key", ["state_dict", "model", "module"])
def test_weights_below_a_trainers_checkpoint_are_found(tmp_path: Path, key: str) -> None:
    weights = make_tiny_weights()
    folder = write_torch_weights(write_tiny_checkpoint(tmp_path), weights)
    torch.save({"epoch": 3, key: to_torch(weights), "optimizer": {"lr": 0.1}}, folder / "pytorch_model.bin")
    name = "model.norm.weight"
    np.testing.assert_array_equal(open_and_check(folder).tensor(name), weights[name])


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.path}",))


def save_evil(path: Path) -> None:
    torch.save({"model.norm.weight": torch.ones(64), "x": Evil(path.with_name("ran"))}, path)


def save_bare_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"x": Evil(path.with_name("ran"))}))


def cut(share: float) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        torch.save(to_torch(make_tiny_weights()), path)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    return write


WRONG: dict[str, tuple[Callable[[Path], object], Reason, str]] = {
    "code": (save_evil, Reason.CHECKPOINT_CORRUPT, "needs the code posix.system to be loaded"),
    "a bare pickle with code": (save_bare_pickle, Reason.CHECKPOINT_CORRUPT, "no file of PyTorch 1.6"),
    "a whole module": (
        lambda path: torch.save(torch.nn.Linear(2, 2), path),
        Reason.CHECKPOINT_CORRUPT,
        "needs the code torch.nn.modules.linear.Linear",
    ),
    "the old format": (
        lambda path: torch.save(to_torch(make_tiny_weights()), path, _use_new_zipfile_serialization=False),
        Reason.CHECKPOINT_CORRUPT,
        "no file of PyTorch 1.6",
    ),
    "a list": (lambda path: torch.save([1, 2], path), Reason.CHECKPOINT_CORRUPT, "holds no weights by name"),
    "sparse tensors": (
        lambda path: torch.save({"a": torch.eye(3).to_sparse()}, path),
        Reason.UNSUPPORTED_ARCHITECTURE,
        "sparse or quantized",
    ),
    "8-bit floats": (
        lambda path: torch.save({"a": torch.ones(3).to(torch.float8_e4m3fn)}, path),
        Reason.UNSUPPORTED_ARCHITECTURE,
        "plain weights",
    ),
    "complex numbers": (
        lambda path: torch.save({"a": torch.ones(3, dtype=torch.complex64)}, path),
        Reason.UNSUPPORTED_ARCHITECTURE,
        "ComplexFloatStorage",
    ),
    "half of a file": (cut(0.5), Reason.CHECKPOINT_CORRUPT, "is cut short"),
    "a file without its last bytes": (cut(0.999), Reason.CHECKPOINT_CORRUPT, "is cut short"),
    "a web page": (lambda path: path.write_text("<html>"), Reason.CHECKPOINT_CORRUPT, "is cut short"),
    "a pointer of Git LFS": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"),
        Reason.CHECKPOINT_INCOMPLETE,
        "git lfs pull",
    ),
}


@pytest.mark.parametrize(("write", "reason", "words"), WRONG.values(), ids=WRONG.keys())
def test_what_is_no_plain_weights_is_refused_by_name_and_never_run(
    tmp_path: Path, write: Callable[[Path], object], reason: Reason, words: str
) -> None:
    folder = write_torch_weights(write_tiny_checkpoint(tmp_path), make_tiny_weights())
    write(folder / "pytorch_model.bin")
    with pytest.raises(Terminal) as failure:
        open_and_check(folder)
    assert failure.value.reason is reason
    assert words in failure.value.message and "pytorch_model.bin" in failure.value.message
    assert not (folder / "ran").exists()


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("torch") / "small.pt"
    torch.save({"a": torch.ones(4, 4), "b": torch.ones(3)}, path)
    return path.read_bytes()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 900), value=st.integers(0, 255))
def test_a_file_with_another_byte_is_read_or_refused(tmp_path: Path, small_file: bytes, at: int, value: int) -> None:
    path = tmp_path / "changed.pt"
    path.write_bytes(small_file[:at] + bytes([value]) + small_file[at + 1 :])
    try:
        read_torch_head(path)
    except Terminal as failure:
        assert failure.message


def test_not_a_number_is_named(tmp_path: Path) -> None:
    weights = make_tiny_weights()
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = np.inf
    checkpoint = open_and_check(write_torch_weights(write_tiny_checkpoint(tmp_path), weights, dtype="float16"))
    with pytest.raises(Terminal, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN or Inf"):
        read_weight(checkpoint, "model.layers.1.mlp.up_proj.weight")


def test_another_shape_than_the_config_says_is_named(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path, shape=TinyShape(intermediate=256))
    with pytest.raises(Terminal, match=r"down_proj\.weight has shape \[64, 128\]|gate_proj\.weight has shape"):
        open_and_check(write_torch_weights(folder, make_tiny_weights(), shards=2))


def prepare_from(source: Source, folder: Path, runtime: str, *, heads_only: bool) -> Checkpoint:
    folder.mkdir()
    return prepare(
        source, folder, SERVING, on_choice=lambda size: None, on_bytes=lambda count: None,
        heads_only=heads_only, runtime=runtime,
    ).checkpoint  # fmt: skip


def test_two_ends_of_a_file_are_enough_to_inspect_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "HEAD", 16 * 1024)
    monkeypatch.setattr(source_module, "TAIL", 8 * 1024)
    folder = write_torch_weights(write_tiny_checkpoint(tmp_path / "c"), make_tiny_weights())
    (folder / "pytorch_model.bin.index.json").unlink(missing_ok=True)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with serve_hub(Hub(files)) as hub:
        place = parse_uri(f"hf://{REPOSITORY}@{COMMIT}")
        source = open_source(place, StorePlace(""), HubAccess(hub.address))
        checkpoint = prepare_from(source, tmp_path / "scratch", "ctranslate2", heads_only=True)
    on_disk = (tmp_path / "scratch/pytorch_model.bin").read_bytes()
    assert len(on_disk) == len(files["pytorch_model.bin"])
    assert on_disk != files["pytorch_model.bin"]
    check_shapes(checkpoint)


def test_without_torch_a_checkpoint_is_inspected_and_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The inspection's image has none, which is that of CTranslate2's builds; TensorRT-LLM's has it."""
    folder = write_torch_weights(write_tiny_checkpoint(tmp_path / "c"), make_tiny_weights())
    source = open_source(parse_uri(f"file://{folder}", local=True), StorePlace(""), HubAccess())
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "hotstart.engines.checkpoints.torch_folder.find_spec", lambda name: None if name == "torch" else found(name)
    )
    checkpoint = prepare_from(source, tmp_path / "a", "tensorrt_llm", heads_only=True)
    with pytest.raises(Terminal, match=r"pytorch_model\.bin is read with PyTorch.*builderTrtllm"):
        checkpoint.tensor("model.norm.weight")
    for runtime, heads_only in (("ctranslate2", True), ("tensorrt_llm", False)):
        with pytest.raises(Terminal, match="which this image lacks") as failure:
            prepare_from(source, tmp_path / f"{runtime}-{heads_only}", runtime, heads_only=heads_only)
        assert failure.value.reason is Reason.UNSUPPORTED_RECIPE


READ_ALL = """
import sys
from pathlib import Path
from hotstart.engines.checkpoints.checkpoint import read_weight
from hotstart.engines.checkpoints.{module} import {name}
{before}
def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
folder = Path(sys.argv[1])
checkpoint = {make}
names = list(checkpoint.shapes())
read_weight(checkpoint, "model.norm.weight")
start = peak = anonymous()
for name in names:
    value = read_weight(checkpoint, name)
    peak = max(peak, anonymous())
    del value
print(peak - start)
"""
READERS = {
    "torch": READ_ALL.format(
        module="torch_folder", name="TorchFolder", before="import torch; torch.set_num_threads(1)",
        make='TorchFolder(folder, ("pytorch_model.bin",))',
    ),
    "safetensors": READ_ALL.format(
        module="safetensors_folder", name="SafetensorsFolder", before="", make="SafetensorsFolder(folder)"
    ),
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_reading_all_weights_takes_the_memory_of_one_tensor(tmp_path: Path, reader: str, dtype: str) -> None:
    shape = TinyShape(layers=6, width=512, intermediate=2048, heads=8, kv_heads=8)
    weights = make_tiny_weights(shape)
    folder = write_tiny_checkpoint(tmp_path, shape=shape, weights=weights, dtype=dtype)
    if reader == "torch":
        write_torch_weights(folder, weights, dtype=dtype)
    largest = max(value.nbytes for value in weights.values())
    total = sum(value.nbytes for value in weights.values())
    assert total > 10 * largest
    done = subprocess.run(
        [sys.executable, "-c", READERS[reader], str(folder)], capture_output=True, text=True, check=True, timeout=120
    )
    assert int(done.stdout) * 1024 < 2 * largest + 4 * 1024 * 1024
