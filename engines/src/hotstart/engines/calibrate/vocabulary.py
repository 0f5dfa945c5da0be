"""The tokens that prompts of a calibration are made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer


def read_vocabulary(tokenizer: Path, end_tokens: Sequence[int] = ()) -> list[int]:
    """The tokens of the tokenizer (tokenizer.json) that are text."""
    made = Tokenizer.from_file(str(tokenizer))
    special = {number for number, token in made.get_added_tokens_decoder().items() if token.special}
    return [number for number in range(made.get_vocab_size()) if number not in special.union(end_tokens)]
