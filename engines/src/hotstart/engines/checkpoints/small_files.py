"""The small files of a Hugging Face folder, whatever format its weights are of: facts, tokenizer, end tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotstart.engines.checkpoints.choose import parse_json
from hotstart.engines.checkpoints.tokenizer import end_ids, first_id, parse_tokenizer
from hotstart.engines.errors import Reason, Terminal
from tokenizers import Tokenizer

POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class Texts:
    """What the tokenizer's files say."""

    tokenizer_json: bytes
    eos_ids: tuple[int, ...]
    bos_id: int | None


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object of the checkpoint, empty where there is no such file.

    Raises:
        Terminal: CheckpointCorrupt, it is none; CheckpointIncomplete, it is a pointer of Git LFS.
    """
    path = folder / name
    if not path.exists():
        return {}
    refuse_pointer(path)
    return parse_json(path.read_bytes(), name)


def read_texts(folder: Path, vocab: int) -> Texts:
    """Tokenizer, end tokens and the token that begins a text; ``vocab`` is the number of rows of the embedding.

    Raises:
        Terminal: TokenizerMismatch, or CheckpointCorrupt where a file is no JSON.
    """
    refuse_pointer(folder / "tokenizer.json")
    tokenizer_json = (folder / "tokenizer.json").read_bytes()
    tokenizer = parse_tokenizer(tokenizer_json)
    ends: list[Any] = []
    for name in ("generation_config.json", "config.json"):
        value = read_json(folder, name).get("eos_token_id")
        ends += value if isinstance(value, list) else [value]
    eos_ids = end_ids(tokenizer, [end for end in ends if isinstance(end, int)], vocab)
    return Texts(tokenizer_json, eos_ids, _bos_id(folder, tokenizer, vocab))


def refuse_pointer(path: Path) -> None:
    """Raises Terminal (CheckpointIncomplete) where Git LFS left a pointer in place of the file."""
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise Terminal(
                Reason.CHECKPOINT_INCOMPLETE,
                f"{path.name} is a pointer of Git LFS and not the file itself: run git lfs pull, and upload it again.",
            )


def _bos_id(folder: Path, tokenizer: Tokenizer, vocab: int) -> int | None:
    bos = read_json(folder, "config.json").get("bos_token_id")
    if not isinstance(bos, int) or not 0 <= bos < vocab:
        return None
    wanted = read_json(folder, "tokenizer_config.json").get("add_bos_token")
    return bos if (first_id(tokenizer) == bos if wanted is None else wanted) else None
