"""Asks a CTranslate2 engine for its top tokens, one forward pass a text, and for what it generates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import ctranslate2
import numpy as np
from hotstart.engines.verify.scorer import BrokenEngine


class CTranslate2Scorer:
    """Implements ``Scorer``; loads the engine as the completion model does, in its own number format.

    Raises:
        BrokenEngine: it cannot be loaded.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self._generator = ctranslate2.Generator(str(folder), device="cpu", inter_threads=1)
        except (RuntimeError, ValueError) as error:
            raise BrokenEngine(f"the engine cannot be loaded: {error}") from error
        self._names: list[str] = json.loads((folder / "vocabulary.json").read_text())

    def top_tokens(self, ids: Sequence[int], positions: Sequence[int]) -> tuple[int, ...]:
        try:
            logits = np.asarray(self._generator.forward_batch([list(ids)]))[0]
        except (RuntimeError, ValueError) as error:
            raise BrokenEngine(f"the engine cannot be run: {error}") from error
        if not np.isfinite(logits).all():
            raise BrokenEngine("the engine computes NaN or Inf for a piece of code")
        return tuple(int(token) for token in logits[list(positions)].argmax(axis=-1))

    def next_token(self, ids: Sequence[int]) -> int | None:
        try:  # through the vocabulary's strings, as the completion model does
            [result] = self._generator.generate_batch(
                [[self._names[token] for token in ids]],
                max_length=1,
                sampling_topk=1,
                include_prompt_in_result=False,
            )
        except (RuntimeError, ValueError, IndexError) as error:
            raise BrokenEngine(f"the engine cannot generate: {error}") from error
        tokens = result.sequences_ids[0]
        return int(tokens[0]) if tokens else None
