"""The engine behind the completion model: a small Protocol, and CTranslate2 behind it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from hotstart.engines.native_memory import give_back_memory
from hotstart.engines.triton.completion.options import RequestOptions
from hotstart.engines.triton.completion.sampling import choose_token

OnToken = Callable[[int], bool]  # a token's id -> whether to end the generation with it
Cancelled = Callable[[], bool]
OnStep = Callable[[Any], bool]  # a step of CTranslate2 -> whether to end the generation with it
MOST_LOGITS_BYTES = 16 * 1024 * 1024  # CTranslate2 keeps those of all steps until the last one


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

    The static-prompt cache is not used: it has no bound. CTranslate2 seeds its random numbers by thread and once. So
    for a request with a seed of its own the engine decodes greedily and tells its logits, the token is drawn from them
    here, and where it is another than the engine's own, the engine begins anew behind it. Such a request takes no
    memory, and a prefill more for each token that is not the likeliest.
    """

    def __init__(self, folder: Path, facts: EngineFacts, *, inter_threads: int, intra_threads: int) -> None:
        import ctranslate2

        self._end_tokens = facts.eos_ids
        self._names: list[str] = json.loads((folder / "vocabulary.json").read_text())
        self._generator = ctranslate2.Generator(
            str(folder), device="cpu", inter_threads=inter_threads, intra_threads=intra_threads
        )
        give_back_memory()

    def generate(
        self, prompt: Sequence[int], options: RequestOptions, on_token: OnToken, cancelled: Cancelled = never
    ) -> Measured:
        if options.seed is not None and options.temperature > 0:
            self._draw(prompt, options, on_token, cancelled)
            return NOTHING_MEASURED

        def take(step: Any) -> bool:
            return step.token_id in self._end_tokens or on_token(step.token_id)

        self._run(prompt, options.max_tokens, take, **make_sampling(options))
        return NOTHING_MEASURED

    def close(self) -> None:
        """Nothing: the generator ends with its last reference."""

    def _draw(self, prompt: Sequence[int], options: RequestOptions, on_token: OnToken, cancelled: Cancelled) -> None:
        source = random.Random(options.seed)
        tokens, over = list(prompt), False
        limit = len(prompt) + options.max_tokens
        longest = max(1, MOST_LOGITS_BYTES // (4 * len(self._names)))

        def take(step: Any) -> bool:
            nonlocal over
            token = choose_token(read_logits(step), options, source.random())
            over = token in self._end_tokens or on_token(token)
            tokens.append(token)
            return over or token != step.token_id

        while not over and len(tokens) < limit and not cancelled():
            before = len(tokens)
            greedy = make_sampling(RequestOptions(max_tokens=options.max_tokens))
            self._run(tuple(tokens), min(longest, limit - before), take, return_logits_vocab=True, **greedy)
            over = over or len(tokens) == before  # it has nothing to say

    def _run(self, prompt: Sequence[int], limit: int, take: OnStep, **sampling: Any) -> None:
        failures: list[Exception] = []
        listeners = [take]

        def on_step(step: Any) -> bool:
            try:
                return listeners[0](step)
            except Exception as error:  # noqa: BLE001  # must not cross CTranslate2's threads; raised below
                failures.append(error)
                return True

        try:
            self._generator.generate_batch(
                [[self._names[token] for token in prompt]],
                max_length=limit,
                include_prompt_in_result=False,
                end_token=list(self._end_tokens),
                callback=on_step,
                **sampling,
            )
        finally:
            # A worker's thread may let go of on_step later than this one; were it the last to hold the engine, it would
            # end the generator, wait for itself and abort the process.
            listeners.clear()
        if failures:
            raise failures[0]


def read_logits(step: Any) -> Any:
    """The logits of one step of CTranslate2, one a token of the vocabulary, as float32."""
    import ctranslate2

    return np.array(step.logits.to(ctranslate2.DataType.float32)).reshape(-1)


def make_sampling(options: RequestOptions) -> dict[str, Any]:
    """CTranslate2's arguments for how to choose the next token. Temperature 0 is greedy."""
    if options.temperature == 0:
        return {"sampling_topk": 1}
    return {
        "sampling_topk": options.top_k,
        "sampling_topp": options.top_p,
        "sampling_temperature": options.temperature,
    }
