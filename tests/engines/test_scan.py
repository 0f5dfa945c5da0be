"""NaN and infinity are found while a file passes, however its bytes are cut into blocks, and are named."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hotstart.engines.checkpoints.choose import ChosenFile, FileRole
from hotstart.engines.checkpoints.finite import all_finite
from hotstart.engines.checkpoints.places import parse_uri
from hotstart.engines.checkpoints.scan import SafetensorsScan, Scan, make_scan
from hotstart.engines.checkpoints.source import HubAccess, download, open_source
from hotstart.engines.checkpoints.torch_scan import TorchScan
from hotstart.engines.errors import Reason, Terminal
from hotstart.engines.s3 import StorePlace
from hypothesis import given
from hypothesis import strategies as st

#: Type -> bytes of one number that is finite, and of some that are not (little endian).
KINDS: dict[str, tuple[bytes, tuple[bytes, ...]]] = {
    "F64": (struct.pack("<d", -1.5), tuple(struct.pack("<d", float(x)) for x in ("nan", "inf", "-inf"))),
    "F32": (struct.pack("<f", 3e38), tuple(struct.pack("<f", float(x)) for x in ("nan", "inf", "-inf"))),
    "F16": (b"\xff\xfb", (b"\x00\x7c", b"\x00\xfc", b"\x01\x7e")),
    "BF16": (b"\x7f\xff", (b"\x80\x7f", b"\x80\xff", b"\xc0\x7f")),
    "F8_E4M3": (b"\x7e", (b"\x7f", b"\xff")),
}


def make_file(tensors: dict[str, tuple[str, bytes]], gap: int = 0) -> bytes:
    """A safetensors file; ``gap`` bytes lie before each tensor."""
    header, data = {}, b""
    for name, (kind, body) in tensors.items():
        data += b"\xff" * gap
        header[name] = {"dtype": kind, "shape": [len(body)], "data_offsets": [len(data), len(data) + len(body)]}
        data += body
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    return struct.pack("<Q", len(text)) + text + data


def scan(found: Scan, content: bytes, *lengths: int) -> str:
    """What is found in the content, cut into blocks of these lengths and the rest."""
    for length in lengths:
        found.update(content[:length])
        content = content[length:]
    found.update(content)
    return found.found


@pytest.mark.parametrize("kind", KINDS)
@given(st.data())
def test_one_number_that_is_none_is_found_wherever_the_blocks_end(kind: str, data: st.DataObject) -> None:
    good, others = KINDS[kind]
    names = [f"layer.{number}" for number in range(3)]
    lengths = data.draw(st.lists(st.integers(0, 9), min_size=3, max_size=3))
    numbers = {name: [good] * length for name, length in zip(names, lengths, strict=True)}
    where = data.draw(st.sampled_from(["", *(name for name in names if numbers[name])]))
    if where:
        at = data.draw(st.integers(0, len(numbers[where]) - 1))
        numbers[where][at] = data.draw(st.sampled_from(others))
    content = make_file(
        {name: (kind, b"".join(found)) for name, found in numbers.items()}, gap=data.draw(st.integers(0, 3))
    )
    blocks = data.draw(st.lists(st.integers(0, 40), max_size=20))
    assert scan(SafetensorsScan(), content, *blocks) == where


def test_whole_numbers_and_masks_are_not_looked_at() -> None:
    infinite = KINDS["F16"][1][1]
    tensors = {"a": ("I8", b"\xff"), "b": ("BOOL", b"\xff"), "h.0.attn.masked_bias": ("F16", infinite)}
    assert scan(SafetensorsScan(), make_file(tensors)) == ""


def test_a_file_without_sense_says_nothing_and_is_refused_when_it_is_opened() -> None:
    for content in (b"", b"x", b"\xff" * 100, struct.pack("<Q", 3) + b"[1]" + b"\xff" * 50, make_file({})[:20]):
        assert scan(SafetensorsScan(), content, 5) == scan(TorchScan(), content, 5) == ""
    assert make_scan("model.gguf") is None
    assert make_scan("config.json") is None


@given(st.binary(max_size=400), st.lists(st.integers(0, 60), max_size=6))
def test_no_bytes_make_a_scan_fail(content: bytes, blocks: list[int]) -> None:
    scan(SafetensorsScan(), content, *blocks)
    scan(TorchScan(), b"PK\x03\x04" + content, *blocks)


@pytest.mark.parametrize("stored", ["F16", "BF16"])
def test_every_pattern_is_judged_as_numpy_does(stored: str) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    wide = (every.astype(np.uint32) << 16).view(np.float32) if stored == "BF16" else every.view(np.float16)
    judged = [all_finite(every[i : i + 1], stored) for i in range(1 << 16)]
    np.testing.assert_array_equal(judged, np.isfinite(wide))


def save_torch(path: Path, tensors: dict[str, Any]) -> bytes:
    import torch

    torch.save(tensors, path)
    return path.read_bytes()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_pytorch_file_is_scanned_as_it_passes(tmp_path: Path, dtype: str, nested: bool) -> None:
    import torch

    def make(value: float) -> dict[str, Any]:
        weights = {f"layer.{number}.weight": torch.ones(37, 21, dtype=getattr(torch, dtype)) for number in range(4)}
        weights["layer.2.weight"][36, 20] = value
        weights["layer.2.mask"] = torch.ones(5, dtype=torch.bool)
        return {"state_dict": weights, "step": torch.full((3,), float("nan"))} if nested else weights

    good, bad = (save_torch(tmp_path / "model.bin", make(value)) for value in (3.0, float("-inf")))
    random = np.random.default_rng(0)
    for blocks in ([], [1] * 200, list(random.integers(0, 700, 60))):
        assert scan(TorchScan(), good, *blocks) == ""
        assert scan(TorchScan(), bad, *blocks) == "layer.2.weight"


def test_what_shares_its_bytes_is_named_by_the_first_that_has_them(tmp_path: Path) -> None:
    import torch

    weight = torch.full((4, 4), float("nan"))
    assert scan(TorchScan(), save_torch(tmp_path / "m.bin", {"wte": weight, "head": weight})) == "wte"


def test_a_download_tells_of_it_once_the_digest_is_right(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("kept", "heads"):
        (tmp_path / name).mkdir()
    good, others = KINDS["BF16"]
    (folder / "model.safetensors").write_bytes(make_file({"w": ("BF16", good * 1000 + others[0])}))
    source = open_source(parse_uri(f"file://{folder}", local=True), StorePlace(""), HubAccess())
    files = tuple(ChosenFile(file, FileRole.WEIGHTS) for file in source.list_files())
    for name, heads_only in (("kept", False), ("heads", True)):
        with pytest.raises(Terminal, match=r"The tensor w of model\.safetensors holds NaN or Inf") as failure:
            download(source, files, tmp_path / name, on_bytes=lambda count: None, heads_only=heads_only)
        assert failure.value.reason is Reason.CHECKPOINT_CORRUPT
