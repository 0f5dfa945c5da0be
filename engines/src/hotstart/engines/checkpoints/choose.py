"""Which files of a folder are the checkpoint, and what each is for. Pure: a listing in, a choice or a clear error out.

Weights and config files make up the checkpoint's digest; tokenizer files do not, for a new tokenizer is no new engine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from hotstart.engines.errors import Reason, Terminal

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
CONFIG_FILES = ("config.json", "generation_config.json", INDEX)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.(gguf|safetensors)$")


class FileRole(StrEnum):
    """What a file is for; ``WEIGHTS`` and ``CONFIG`` are in the checkpoint's digest."""

    WEIGHTS = "weights"
    CONFIG = "config"
    TOKENIZER = "tokenizer"


@dataclass(frozen=True)
class ListedFile:
    """A file of the checkpoint's folder: ``name`` relative to it, ``size`` in bytes, the store's ``etag``.

    ``sha256`` and ``git_oid`` (git's sha1 of a blob) are in hex, where the list says them.
    """

    name: str
    size: int
    etag: str = ""
    sha256: str = ""
    git_oid: str = ""


@dataclass(frozen=True)
class ChosenFile:
    """One file to read."""

    file: ListedFile
    role: FileRole

    @property
    def in_digest(self) -> bool:
        return self.role is not FileRole.TOKENIZER


@dataclass(frozen=True)
class Choice:
    """The checkpoint's files in the order of reading: small ones first, so that bad config is found at once."""

    format: str  # gguf | safetensors
    files: tuple[ChosenFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(chosen.file.size for chosen in self.files)


def choose_files(listing: tuple[ListedFile, ...], *, where: str) -> Choice:
    """The files of the checkpoint at ``where`` (an s3:// URI, for messages).

    Raises:
        Terminal: CheckpointIncomplete or UnsupportedArchitecture, with the file that is missing or too many.
    """
    by_name = {file.name: file for file in listing}
    weights = [file for file in listing if file.name.endswith((".gguf", ".safetensors")) and "/" not in file.name]
    empty = next((file.name for file in weights if file.size == 0), None)
    if empty is not None:
        raise Terminal(Reason.CHECKPOINT_CORRUPT, f"{empty} in {where} is empty: upload it again.")
    ggufs = [file for file in weights if file.name.endswith(".gguf")]
    if len(ggufs) == len(weights) and ggufs:
        return Choice("gguf", (ChosenFile(_one_gguf(ggufs, where), FileRole.WEIGHTS),))
    return _choose_safetensors(by_name, where)


def narrow_to_index(choice: Choice, index: Mapping[str, Any], *, where: str) -> Choice:
    """Drops weight files that the index does not name, such as a second copy of the weights in another layout.

    Raises:
        Terminal: CheckpointIncomplete, a shard of the index is missing.
    """
    weights = frozenset(chosen.file.name for chosen in choice.files if chosen.role is FileRole.WEIGHTS)
    shards = check_shards(index, weights, where=where)
    kept = tuple(c for c in choice.files if c.role is not FileRole.WEIGHTS or c.file.name in shards)
    return Choice(choice.format, kept)


def check_shards(index: Mapping[str, Any], names: frozenset[str], *, where: str) -> frozenset[str]:
    """The shards that ``model.safetensors.index.json`` names, all of them among ``names``.

    Raises:
        Terminal: CheckpointIncomplete names the first one that is missing.
    """
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise Terminal(Reason.CHECKPOINT_CORRUPT, f"{INDEX} in {where} has no weight_map: upload it again.")
    shards = frozenset(str(shard) for shard in weight_map.values())
    missing = sorted(shards - names)
    if missing:
        raise Terminal(
            Reason.CHECKPOINT_INCOMPLETE,
            f"The shard {missing[0]} is missing in {where} ({len(missing)} of {len(shards)} are): upload it.",
        )
    return shards


def parse_json(text: bytes, name: str) -> dict[str, Any]:
    """A JSON object of the checkpoint.

    Raises:
        Terminal: CheckpointCorrupt, it is none.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise Terminal(Reason.CHECKPOINT_CORRUPT, f"{name} is no JSON ({error}): upload it again.") from error
    if not isinstance(value, dict):
        raise Terminal(Reason.CHECKPOINT_CORRUPT, f"{name} is no JSON object: upload it again.")
    return value


def _choose_safetensors(by_name: Mapping[str, ListedFile], where: str) -> Choice:
    weights = [name for name in by_name if name.endswith(".safetensors") and "/" not in name]
    if not weights:
        pickles = [name for name in by_name if name.endswith((".bin", ".pt", ".pth"))]
        found = f" There is {pickles[0]}, which could run code and is not read: save as safetensors." if pickles else ""
        raise Terminal(
            Reason.CHECKPOINT_INCOMPLETE,
            f"{where} has neither a .gguf nor a .safetensors file.{found}",
        )
    for needed in ("config.json", "tokenizer.json"):
        if needed not in by_name:
            raise Terminal(Reason.CHECKPOINT_INCOMPLETE, f"{needed} is missing in {where}: upload it.")
    if INDEX not in by_name:
        weights = _without_index(weights, where)
    small = [ChosenFile(by_name[name], FileRole.CONFIG) for name in CONFIG_FILES if name in by_name]
    small += [ChosenFile(by_name[name], FileRole.TOKENIZER) for name in TOKENIZER_FILES if name in by_name]
    return Choice("safetensors", (*small, *(ChosenFile(by_name[n], FileRole.WEIGHTS) for n in sorted(weights))))


def _without_index(weights: list[str], where: str) -> list[str]:
    if SINGLE in weights:
        return [SINGLE]
    if len(weights) == 1 and not SHARD.match(weights[0]):
        return weights
    raise Terminal(
        Reason.CHECKPOINT_INCOMPLETE,
        f"{INDEX} is missing in {where}, and there is no {SINGLE}: upload the index with all its shards.",
    )


def _one_gguf(files: list[ListedFile], where: str) -> ListedFile:
    if SHARD.match(files[0].name):
        raise Terminal(
            Reason.UNSUPPORTED_ARCHITECTURE,
            f"{files[0].name} in {where} is one part of a split GGUF: merge the parts into one file.",
        )
    if len(files) > 1:
        names = ", ".join(sorted(file.name for file in files)[:4])
        raise Terminal(
            Reason.CHECKPOINT_INCOMPLETE,
            f"{where} has {len(files)} GGUF files ({names}): name one of them in checkpoint.uri.",
        )
    return files[0]
