"""The engine behind the completion model: a small Protocol, and CTranslate2 behind it."""

from __future__ import annotations

import ctypes
import json
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hotstart.engines.triton.completion.options import RequestOptions

OnToken = Callable[[int], bool]  # a token's id -> whether to end the generation with it
Cancelled = Callable[[], bool]


def never() -> bool:
    """Of a generation that nobody cancels."""
    return False


@dataclass(frozen=True)
class Measured:
    """What an engine itself says of one generation; None where it says nothing."""

    queue_ms: float | None = None  # from the engine's receipt to the first time that it worked on it
    reused_blocks: int | None = None  # of its KV cache, from earlier requests with the same beginning


NOTHING_MEASURED = Measured()


class Engine(Protocol):
    """Generates tokens. ``generate`` blocks and may be called from as many threads as the engine has workers."""

    def generate(
        self, prompt: Sequence[int], options: RequestOptions, on_token: OnToken, cancelled: Cancelled = never
    ) -> Measured:
        """Calls ``on_token`` for each new token, until it returns True, a token ends the text, or the limit is met.

        Tokens that end a text are not handed on. The limit is ``options.max_tokens``. An engine that can ends as soon
        as ``cancelled`` says so; else ``on_token`` ends it with the next token.
        """

    def close(self) -> None:
        """Ends what it began; no generation runs any more."""


@dataclass(frozen=True)
class EngineFacts:
    """What the builder left in engine.json about the engine."""

    runtime: str
    context_length: int
    eos_ids: tuple[int, ...]
    bos_id: int | None


def read_facts(folder: Path) -> EngineFacts:
    """The facts of the engine in ``folder``.

    Raises:
        OSError, ValueError, KeyError: engine.json is missing, or not what a builder writes.
    """
    value = json.loads((folder / "engine.json").read_text())
    return EngineFacts(
        runtime=value["runtime"],
        context_length=int(value["context_length"]),
        eos_ids=tuple(int(token) for token in value["eos_ids"]),
        bos_id=None if value["bos_id"] is None else int(value["bos_id"]),
    )


class CTranslate2Engine:
    """One ``ctranslate2.Generator`` whose workers share the weights.

    The static-prompt cache is not used: it has no bound. CTranslate2 seeds its random numbers by thread and once, so a
    request with a seed of its own runs on a generator loaded for it: one such request at a time, and as long as it runs
    the engine is in memory twice.
    """

    def __init__(self, folder: Path, facts: EngineFacts, *, inter_threads: int, intra_threads: int) -> None:
        self._folder = folder
        self._intra_threads = intra_threads
        self._end_tokens = facts.eos_ids
        self._names: list[str] = json.loads((folder / "vocabulary.json").read_text())
        self._generator = self._load(inter_threads)
        give_back_memory()
        self._seeding = threading.Lock()

    def generate(
        self, prompt: Sequence[int], options: RequestOptions, on_token: OnToken, cancelled: Cancelled = never
    ) -> Measured:
        if options.seed is None or options.temperature == 0:
            self._run(self._generator, prompt, options, on_token)
            return NOTHING_MEASURED
        import ctranslate2

        with self._seeding:
            ctranslate2.set_random_seed(options.seed)
            try:
                self._run(self._load(1), prompt, options, on_token)
            finally:
                ctranslate2.set_random_seed(random.getrandbits(32))
                give_back_memory()
        return NOTHING_MEASURED

    def close(self) -> None:
        """Nothing: the generator ends with its last reference."""

    def _load(self, inter_threads: int) -> Any:
        import ctranslate2

        return ctranslate2.Generator(
            str(self._folder), device="cpu", inter_threads=inter_threads, intra_threads=self._intra_threads
        )

    def _run(self, generator: Any, prompt: Sequence[int], options: RequestOptions, on_token: OnToken) -> None:
        failures: list[Exception] = []
        ends, listeners = self._end_tokens, [on_token]

        def on_step(step: Any) -> bool:
            if step.token_id in ends:
                return True
            try:
                return listeners[0](step.token_id)
            except Exception as error:  # noqa: BLE001  # must not cross CTranslate2's threads; raised below
                failures.append(error)
                return True

        try:
            generator.generate_batch(
                [[self._names[token] for token in prompt]],
                max_length=options.max_tokens,
                include_prompt_in_result=False,
                end_token=list(self._end_tokens),
                callback=on_step,
                **make_sampling(options),
            )
        finally:
            # A worker's thread may let go of on_step later than this one; were it the last to hold the engine, it would
            # end the generator, wait for itself and abort the process.
            listeners.clear()
        if failures:
            raise failures[0]


def give_back_memory() -> None:
    """Lets the C library return freed pages; of what a load takes for a moment it would keep an engine's size."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc
        trim(0)


def make_sampling(options: RequestOptions) -> dict[str, Any]:
    """CTranslate2's arguments for how to choose the next token. Temperature 0 is greedy."""
    if options.temperature == 0:
        return {"sampling_topk": 1}
    return {
        "sampling_topk": options.top_k,
        "sampling_topp": options.top_p,
        "sampling_temperature": options.temperature,
    }
