"""The completion model as Triton loads it, on an engine that takes no time: what is left is its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hotstart.engines.triton.completion import model
from hotstart.engines.triton.completion.engine import (
    NOTHING_MEASURED,
    Cancelled,
    Engine,
    EngineFacts,
    Measured,
    OnToken,
    never,
)
from hotstart.engines.triton.completion.options import RequestOptions
from hotstart.exchange.messages import ServingOptions

TOKEN = 40


class TrivialEngine:
    """Implements ``engine.Engine``: the same token as often as it is asked for."""

    def generate(
        self, prompt: Sequence[int], options: RequestOptions, on_token: OnToken, cancelled: Cancelled = never
    ) -> Measured:
        for _ in range(options.max_tokens):
            if on_token(TOKEN):
                break
        return NOTHING_MEASURED

    def close(self) -> None:
        """Nothing is open."""


def open_trivial(folder: Path, facts: EngineFacts, serving: ServingOptions) -> tuple[Engine, int]:
    """In place of the engine in ``folder``."""
    return TrivialEngine(), serving.inter_threads


model.open_engine = open_trivial
TritonPythonModel = model.TritonPythonModel
