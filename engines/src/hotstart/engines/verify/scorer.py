"""What verification needs of an engine: its top token at positions of a text. Each runtime has one of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from hotstart.engines.recipe import EngineRecipe


class Scorer(Protocol):
    """One loaded engine."""

    def top_tokens(self, ids: Sequence[int], positions: Sequence[int]) -> tuple[int, ...]:
        """For each position the token that the engine finds most likely after ``ids[:position + 1]``.

        Raises:
            BrokenEngine: the engine cannot compute it, or what it computes are no numbers.
        """

    def next_token(self, ids: Sequence[int]) -> int | None:
        """The token that the engine generates greedily after ``ids``, or None.

        CTranslate2 generates here as it does for users. Of TensorRT-LLM it is the library, not Triton's backend, that
        is asked: that one answers the golden questions in the builder's own Triton, when the engine is calibrated.

        Raises:
            BrokenEngine: the engine cannot generate.
        """


class ScorerFactory(Protocol):
    """The part of a runtime that verification uses."""

    def open_scorer(self, folder: Path, recipe: EngineRecipe) -> Scorer:
        """Loads the engine in ``folder`` anew.

        Raises:
            BrokenEngine: it cannot be loaded.
            Retryable: the machine does not let it be; so of both methods of the scorer.
        """


class BrokenEngine(Exception):
    """The engine does not load or run; ``str()`` completes the sentence "The engine was built, but ..."."""
