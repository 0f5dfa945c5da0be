"""Asks a CTranslate2 engine for its top tokens: one forward pass a text."""

from __future__ import annotations

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

    def top_tokens(self, ids: Sequence[int], positions: Sequence[int]) -> tuple[int, ...]:
        try:
            logits = np.asarray(self._generator.forward_batch([list(ids)]))[0]
        except (RuntimeError, ValueError) as error:
            raise BrokenEngine(f"the engine cannot be run: {error}") from error
        if not np.isfinite(logits).all():
            raise BrokenEngine("the engine computes NaN or Inf for a piece of code")
        return tuple(int(token) for token in logits[list(positions)].argmax(axis=-1))
