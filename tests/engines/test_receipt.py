"""A finished conversion is taken over; anything else is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hotstart.engines.builder.receipt import (
    CHECKPOINT,
    FILES,
    RECEIPT,
    BadReceipt,
    Receipt,
    parse_receipt,
    read_conversion,
    write_receipt,
)

KEY = "k" * 64


@pytest.fixture
def conversion(tmp_path: Path) -> Path:
    folder = tmp_path / "converted"
    (folder / FILES / "checkpoint").mkdir(parents=True)
    (folder / FILES / "checkpoint" / "rank0.safetensors").write_bytes(b"weights")
    (folder / FILES / "tokenizer.json").write_text("{}")
    (folder / CHECKPOINT).mkdir()
    (folder / CHECKPOINT / "config.json").write_text("{}")
    write_receipt(folder, Receipt(KEY, "c" * 64, "t" * 64, "safetensors", (("config.json", 2, "etag", "config"),), 1.5))
    return folder


def test_a_finished_conversion_is_what_was_written(conversion: Path) -> None:
    receipt = read_conversion(conversion, KEY)
    assert (receipt.checkpoint_format, receipt.seconds) == ("safetensors", 1.5)
    assert set(receipt.files) == {"checkpoint/rank0.safetensors", "tokenizer.json"}
    assert parse_receipt(receipt.to_json()) == receipt


def _remove(conversion: Path) -> None:
    (conversion / FILES / "tokenizer.json").unlink()


def _add(conversion: Path) -> None:
    (conversion / FILES / "more").write_text("")


def _flip(conversion: Path) -> None:
    (conversion / FILES / "checkpoint" / "rank0.safetensors").write_bytes(b"weighty")


def _cut(conversion: Path) -> None:
    (conversion / FILES / "checkpoint" / "rank0.safetensors").write_bytes(b"")


def _cut_receipt(conversion: Path) -> None:
    text = (conversion / RECEIPT).read_text()
    (conversion / RECEIPT).write_text(text[: len(text) // 2])


def _cut_checkpoint(conversion: Path) -> None:
    (conversion / CHECKPOINT / "config.json").write_text("")


def _no_receipt(conversion: Path) -> None:
    (conversion / RECEIPT).unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_remove, "tokenizer.json is missing"),
        (_add, "more than was written"),
        (_flip, "rank0.safetensors is not what was written"),
        (_cut, "rank0.safetensors is not what was written"),
        (_cut_receipt, "cannot be read"),
        (_cut_checkpoint, "config.json is not there as a whole"),
        (_no_receipt, "no finished one"),
    ],
)
def test_nothing_half_done_is_taken_over(conversion: Path, spoil: Callable[[Path], None], words: str) -> None:
    spoil(conversion)
    with pytest.raises(BadReceipt, match=words):
        read_conversion(conversion, KEY)


def test_a_conversion_for_another_engine_is_not_taken_over(conversion: Path) -> None:
    with pytest.raises(BadReceipt, match="for the engine kkkkkkkkkkkk, not xxxxxxxxxxxx"):
        read_conversion(conversion, "x" * 64)
