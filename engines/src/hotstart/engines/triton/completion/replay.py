"""Asks the loaded engine its golden questions before anybody else may: the last step of a load.

What passed verification in the builder may still be wrong here: another tokenizer beside it, a GPU or a CPU that
computes something else. An engine of a builder that knew of no golden questions is loaded as it is.

An engine that is a model of Triton's own cannot be asked while the completion model is being loaded: it is asked when
the first request comes, which is the pod agent's warm-up, and no request is answered before.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hotstart.engines.triton.completion.engine import Cancelled, Engine, Measured, OnToken, never
from hotstart.engines.triton.completion.errors import CompletionError
from hotstart.engines.triton.completion.names import REPLAY_FAILED
from hotstart.engines.triton.completion.options import RequestOptions
from hotstart.engines.triton.completion.prompts import TokenizerLike, encode
from hotstart.engines.verify.golden import Golden, read_goldens

log = logging.getLogger(__name__)


class ReplayFailed(CompletionError):
    """The message begins with ``REPLAY_FAILED``, by which the pod agent tells it from what may pass next time."""


class ProvenEngine:
    """Implements ``engine.Engine``: another engine, that answers nobody before ``ask`` has passed.

    ``ask`` is called once; a ReplayFailed of it stands for good, whatever else it raises may pass with the next call.
    """

    def __init__(self, engine: Engine, ask: Callable[[], object]) -> None:
        self._engine = engine
        self._ask = ask
        self._lock = threading.Lock()
        self._proven = False
        self._failure = ""

    def prove(self) -> None:
        """Asks, unless it was asked before.

        Raises:
            ReplayFailed: an answer was wrong, now or then.
        """
        if self._proven:
            return
        with self._lock:
            if self._failure:
                raise ReplayFailed(self._failure)
            if not self._proven:
                try:
                    self._ask()
                except ReplayFailed as error:
                    self._failure = error.args[0]
                    raise
                self._proven = True

    def generate(
        self, prompt: Sequence[int], options: RequestOptions, on_token: OnToken, cancelled: Cancelled = never
    ) -> Measured:
        self.prove()
        return self._engine.generate(prompt, options, on_token, cancelled)

    def close(self) -> None:
        self._engine.close()


def replay(folder: Path, tokenizer: TokenizerLike, begin: int | None, engine: Engine) -> int:
    """Asks the golden questions in the engine's folder; returns how many there were.

    Raises:
        ReplayFailed: an answer is another one, or the questions cannot be read.
    """
    began = time.monotonic()
    try:
        goldens = read_goldens(folder)
    except (ValueError, KeyError, TypeError) as error:
        raise ReplayFailed(f"{REPLAY_FAILED}: its golden questions cannot be read ({error}).") from error
    for number, golden in enumerate(goldens, start=1):
        what = check(golden, tokenizer, begin, engine)
        if what:
            raise ReplayFailed(f"{REPLAY_FAILED}: {what} (question {number} of {len(goldens)}).")
    log.info("golden questions replayed count=%d seconds=%.3f", len(goldens), time.monotonic() - began)
    return len(goldens)


def check(golden: Golden, tokenizer: TokenizerLike, begin: int | None, engine: Engine) -> str:
    """What is wrong with the answer to one question; '' where nothing is."""
    ids = tuple(encode(tokenizer, golden.text).ids)
    if ids != golden.ids:
        where = next((i for i, (a, b) in enumerate(zip(ids, golden.ids, strict=False)) if a != b), len(ids))
        return f"its tokenizer gives other tokens than the checkpoint's, from token {where} on: it is another tokenizer"
    tokens: list[int] = []

    def on_token(token: int) -> bool:
        tokens.append(token)
        return True

    prompt = ids if begin is None else (begin, *ids)
    engine.generate(prompt, RequestOptions(max_tokens=1, temperature=0.0), on_token)
    if tokens[:1] == [golden.token]:
        return ""
    found = f"token {tokens[0]}" if tokens else "the end of the text"
    return (
        f"after {golden.text[-20:]!r} it gives {found}, its checkpoint {golden.token}: this machine computes it wrongly"
    )
