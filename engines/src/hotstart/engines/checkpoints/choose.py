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

SAFETENSORS_INDEX = "model.safetensors.index.json"
TORCH_INDEX = "pytorch_model.bin.index.json"
#: Format -> the name of its weights where they are one file.
SINGLE_FILES = {"safetensors": "model.safetensors", "torch": "pytorch_model.bin"}
CONFIG_FILES = ("config.json", "generation_config.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
TORCH = (".bin", ".pt", ".pth")
WEIGHTS = (".gguf", ".safetensors", *TORCH)
SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.(gguf|safetensors|bin|pt|pth)$")
#: A rank of a TensorRT-LLM checkpoint.
RANK = re.compile(r"^rank(\d+)\.safetensors$")
#: What a trainer leaves beside the weights.
_TRAINERS = re.compile(r"^(training_args|optimizer|scheduler|scaler|rng_state.*|random_states.*)\.(bin|pt|pth)$")


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

    format: str  # gguf | safetensors | torch | tensorrt_llm
    files: tuple[ChosenFile, ...]
    index: str = ""  # the file that names the shards, if there is one

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
    empty = next((file.name for file in listing if file.size == 0 and file.name.endswith(WEIGHTS)), None)
    if empty is not None:
        raise Terminal(Reason.CHECKPOINT_CORRUPT, f"{empty} in {where} is empty: upload it again.")
    ggufs = [file for file in weights if file.name.endswith(".gguf")]
    if len(ggufs) == len(weights) and ggufs:
        return Choice("gguf", (ChosenFile(_one_gguf(ggufs, where), FileRole.WEIGHTS),))
    ranks = [file.name for file in weights if RANK.match(file.name)]
    if ranks:
        return _with_small_files("tensorrt_llm", by_name, ranks, "", where)
    return _choose_hugging_face(by_name, where)


def narrow_to_index(choice: Choice, index: Mapping[str, Any], *, where: str) -> Choice:
    """Drops weight files that the index does not name, such as a second copy of the weights in another layout.

    Raises:
        Terminal: CheckpointIncomplete, a shard of the index is missing.
    """
    weights = frozenset(chosen.file.name for chosen in choice.files if chosen.role is FileRole.WEIGHTS)
    shards = check_shards(index, weights, choice.index, where=where)
    kept = tuple(c for c in choice.files if c.role is not FileRole.WEIGHTS or c.file.name in shards)
    return Choice(choice.format, kept, choice.index)


def check_shards(index: Mapping[str, Any], names: frozenset[str], index_name: str, *, where: str) -> frozenset[str]:
    """The shards that the index names, all of them among ``names``.

    Raises:
        Terminal: CheckpointIncomplete names the first one that is missing.
    """
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise Terminal(Reason.CHECKPOINT_CORRUPT, f"{index_name} in {where} has no weight_map: upload it again.")
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


def _choose_hugging_face(by_name: Mapping[str, ListedFile], where: str) -> Choice:
    top = [name for name in by_name if "/" not in name]
    weights = [name for name in top if name.endswith(".safetensors")]
    if weights:
        return _choose_weights("safetensors", by_name, weights, SAFETENSORS_INDEX, where)
    weights = [name for name in top if name.endswith(TORCH) and not _TRAINERS.match(name)]
    if weights:
        return _choose_weights("torch", by_name, weights, TORCH_INDEX, where)
    raise Terminal(
        Reason.CHECKPOINT_INCOMPLETE,
        f"{where} has no weights: no .safetensors, .bin, .pt or .gguf file.",
    )


def _choose_weights(kind: str, by_name: Mapping[str, ListedFile], weights: list[str], index: str, where: str) -> Choice:
    """Weights that one index, one file of the usual name, or nothing else stands for."""
    single = SINGLE_FILES[kind]
    if index in by_name:
        return _with_small_files(kind, by_name, weights, index, where)
    if single in weights:
        return _with_small_files(kind, by_name, [single], "", where)
    if len(weights) == 1 and not SHARD.match(weights[0]):
        return _with_small_files(kind, by_name, weights, "", where)
    raise Terminal(
        Reason.CHECKPOINT_INCOMPLETE,
        f"{index} is missing in {where}, and there is no {single}: upload the index with all its shards.",
    )


def _with_small_files(
    kind: str, by_name: Mapping[str, ListedFile], weights: list[str], index: str, where: str
) -> Choice:
    for needed in ("config.json", "tokenizer.json"):
        if needed not in by_name:
            raise Terminal(Reason.CHECKPOINT_INCOMPLETE, f"{needed} is missing in {where}: upload it.")
    small = [ChosenFile(by_name[name], FileRole.CONFIG) for name in (*CONFIG_FILES, index) if name in by_name]
    small += [ChosenFile(by_name[name], FileRole.TOKENIZER) for name in TOKENIZER_FILES if name in by_name]
    return Choice(kind, (*small, *(ChosenFile(by_name[n], FileRole.WEIGHTS) for n in sorted(weights))), index)


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
