"""A Hugging Face checkpoint in a folder: config.json, tokenizer.json and safetensors, one file or shards with an index.

Tensors are mapped from disk and decoded one at a time, so a checkpoint larger than memory can be converted.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hotstart.engines.checkpoints.checkpoint import Array, Facts, Shape, StoredTensor
from hotstart.engines.checkpoints.choose import INDEX, parse_json
from hotstart.engines.checkpoints.facts import make_checkpoint_facts
from hotstart.engines.checkpoints.tokenizer import end_ids, parse_tokenizer, starts_with
from hotstart.engines.errors import Reason, Terminal
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

# https://github.com/huggingface/safetensors#format; bfloat16 is the upper half of a float32.
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}


@dataclass(frozen=True)
class _Entry:
    file: Path
    dtype: str
    shape: Shape
    start: int  # bytes from the start of the file


class SafetensorsFolder:
    """Implements ``Checkpoint``. Weight files may be sparse (see ``download``) as long as no tensor is read."""

    format = "safetensors"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.facts: Facts = make_checkpoint_facts(self._json("config.json"))
        self.tokenizer_json = (folder / "tokenizer.json").read_bytes()
        tokenizer = parse_tokenizer(self.tokenizer_json)
        self.eos_ids = end_ids(tokenizer, self._declared_ends(), self.facts.vocab)
        self.bos_id = self._bos_id(tokenizer)
        self._entries: dict[str, _Entry] | None = None

    def shapes(self) -> dict[str, Shape]:
        return {name: entry.shape for name, entry in self._load_entries().items()}

    def stored(self, name: str) -> StoredTensor:
        entry = self._load_entries()[name]
        return StoredTensor(entry.dtype, np.memmap(entry.file, DTYPES[entry.dtype], "r", entry.start, entry.shape))

    def tensor(self, name: str) -> Array:
        found = self.stored(name)
        if found.dtype == "BF16":
            return (found.values.astype(np.uint32) << 16).view(np.float32)
        return np.array(found.values, dtype=np.float32)

    def _load_entries(self) -> dict[str, _Entry]:
        if self._entries is None:
            self._entries = {}
            for path in self._weight_files():
                self._entries |= read_header(path)
        return self._entries

    def _weight_files(self) -> list[Path]:
        if (self._folder / INDEX).exists():
            shards = set(self._json(INDEX)["weight_map"].values())
            return [self._folder / shard for shard in sorted(shards)]
        return sorted(self._folder.glob("*.safetensors"))

    def _json(self, name: str) -> dict[str, Any]:
        path = self._folder / name
        return parse_json(path.read_bytes(), name) if path.exists() else {}

    def _declared_ends(self) -> list[int]:
        ends: list[Any] = []
        for name in ("generation_config.json", "config.json"):
            value = self._json(name).get("eos_token_id")
            ends += value if isinstance(value, list) else [value]
        return [end for end in ends if isinstance(end, int)]

    def _bos_id(self, tokenizer: Tokenizer) -> int | None:
        bos = self._json("config.json").get("bos_token_id")
        if not isinstance(bos, int) or not 0 <= bos < self.facts.vocab:
            return None
        wanted = self._json("tokenizer_config.json").get("add_bos_token")
        return bos if (starts_with(tokenizer, bos) if wanted is None else wanted) else None


def read_header(path: Path) -> dict[str, _Entry]:
    """Where each tensor of one file lies.

    Raises:
        Terminal: CheckpointCorrupt, the file is cut short or malformed; UnsupportedArchitecture, an unknown dtype.
    """
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
    unknown = next((f"{name} ({e['dtype']})" for name, e in header.items() if e["dtype"] not in DTYPES), None)
    if unknown:
        raise Terminal(
            Reason.UNSUPPORTED_ARCHITECTURE,
            f"{path.name}: the tensor {unknown} has an unsupported type; known are {', '.join(DTYPES)}.",
        )
    start = 8 + length
    return {
        name: _Entry(path, entry["dtype"], tuple(entry["shape"]), start + entry["data_offsets"][0])
        for name, entry in header.items()
    }
