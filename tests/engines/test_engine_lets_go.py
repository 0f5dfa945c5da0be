"""A generation leaves nothing behind that could end its engine on one of the engine's own threads."""

from __future__ import annotations

import weakref
from pathlib import Path

from hotstart.engines.triton.completion.engine import CTranslate2Engine, read_facts
from hotstart.engines.triton.completion.options import RequestOptions

from tests.support.tiny_engine import write_tiny_engine


class Listener:
    """A request's end of a generation."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def __call__(self, token: int) -> bool:
        self.tokens.append(token)
        return False


def test_request_and_engine_are_free_as_soon_as_the_generation_returns(tmp_path: Path) -> None:
    folder = write_tiny_engine(tmp_path / "engine")
    for seed in (None, 7) * 10:
        engine = CTranslate2Engine(folder, read_facts(folder), inter_threads=1, intra_threads=1)
        listener = Listener()
        engine.generate([1, 2, 3], RequestOptions(max_tokens=3, temperature=0.5, seed=seed), listener)
        assert listener.tokens
        request, generator = weakref.ref(listener), weakref.ref(engine)
        del listener, engine
        assert request() is None
        assert generator() is None
