"""A Hugging Face checkpoint in a folder: config.json, tokenizer.json and safetensors, one file or shards with an index.

Tensors are mapped from disk and decoded one at a time, so a checkpoint larger than memory can be converted.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hotstart.engines.checkpoints.checkpoint import Array, Facts, Shape, StoredTensor, decode
from hotstart.engines.checkpoints.choose import SAFETENSORS_INDEX
from hotstart.engines.checkpoints.facts import make_checkpoint_facts
from hotstart.engines.checkpoints.small_files import read_json, read_texts, refuse_pointer
from hotstart.engines.checkpoints.upstream_config import count_upstream
from hotstart.engines.errors import Reason, Terminal
from safetensors import SafetensorError, safe_open

# https://github.com/huggingface/safetensors#format; bfloat16 is the upper half of a float32.
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
#: Masks and positions, which old checkpoints store beside the weights; never read.
BUFFERS = frozenset({"BOOL", "I64"})
#: Types that these have too, and packed weights: here the name must be one of theirs.
INTEGERS = frozenset({"U8", "I8", "I16", "I32"})
BUFFER_NAMES = ("attn.bias", "attention.bias", "masked_bias", "position_ids")


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies; ``dtype`` as safetensors names it, ``start`` in bytes of the file."""

    file: Path
    dtype: str
    shape: Shape
    start: int


class SafetensorsFolder:
    """Implements ``Checkpoint``. Weight files may be sparse (see ``download``) as long as no tensor is read."""

    format = "safetensors"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        facts = make_checkpoint_facts(read_json(folder, "config.json"))
        texts = read_texts(folder, facts.vocab)
        self.tokenizer_json, self.eos_ids, self.bos_id = texts.tokenizer_json, texts.eos_ids, texts.bos_id
        self._entries: dict[str, Entry] | None = None
        there = all(path.exists() for path in self._weight_files())
        self.facts: Facts = count_upstream(facts, self.shapes) if there else facts

    def shapes(self) -> dict[str, Shape]:
        return {name: entry.shape for name, entry in self._load_entries().items()}

    def stored(self, name: str) -> StoredTensor:
        return map_entry(self._load_entries()[name])

    def tensor(self, name: str) -> Array:
        return decode(self.stored(name))

    def _load_entries(self) -> dict[str, Entry]:
        if self._entries is None:
            self._entries = {}
            for path in self._weight_files():
                self._entries |= read_header(path)
        return self._entries

    def _weight_files(self) -> list[Path]:
        index = read_json(self.folder, SAFETENSORS_INDEX)
        if index:
            return [self.folder / shard for shard in sorted(set(index["weight_map"].values()))]
        return sorted(self.folder.glob("*.safetensors"))


def map_entry(entry: Entry) -> StoredTensor:
    """One tensor, mapped and not read."""
    return StoredTensor(entry.dtype, np.memmap(entry.file, DTYPES[entry.dtype], "r", entry.start, entry.shape))


def read_header(path: Path, known: Container[str] = frozenset(DTYPES)) -> dict[str, Entry]:
    """Where each tensor of one file lies; buffers are left out.

    Raises:
        Terminal: CheckpointCorrupt, the file is cut short or malformed; UnsupportedArchitecture, an unknown dtype.
    """
    refuse_pointer(path)
    try:
        with safe_open(path, framework="numpy") as opened:  # checks sizes, overlaps and the header's form
            opened.keys()
    except (SafetensorError, OSError) as error:
        raise Terminal(
            Reason.CHECKPOINT_CORRUPT, f"{path.name} is cut short or no safetensors file ({error}): upload it again."
        ) from error
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    header = {name: entry for name, entry in header.items() if not _is_buffer(name, entry["dtype"], known)}
    unknown = next((f"{name} ({e['dtype']})" for name, e in header.items() if e["dtype"] not in known), None)
    if unknown:
        raise Terminal(
            Reason.UNSUPPORTED_ARCHITECTURE,
            f"{path.name}: the tensor {unknown} has an unsupported type; known are {', '.join(DTYPES)}.",
        )
    start = 8 + length
    return {
        name: Entry(path, entry["dtype"], tuple(entry["shape"]), start + entry["data_offsets"][0])
        for name, entry in header.items()
    }


def _is_buffer(name: str, dtype: str, known: Container[str]) -> bool:
    return dtype in BUFFERS or (dtype in INTEGERS and dtype not in known and name.endswith(BUFFER_NAMES))
