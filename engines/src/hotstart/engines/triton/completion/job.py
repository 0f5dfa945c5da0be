"""One request from its tokens to its answer: what the scheduler runs."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from hotstart.engines.triton.completion.engine import NOTHING_MEASURED, Engine, Measured
from hotstart.engines.triton.completion.errors import CompletionError
from hotstart.engines.triton.completion.generation import FinishReason, NextText, TextAssembler
from hotstart.engines.triton.completion.options import RequestOptions
from hotstart.engines.triton.completion.prompts import Prepared
from hotstart.engines.triton.completion.stops import StopRules

log = logging.getLogger(__name__)


class Answer(Protocol):
    """The way back to one client. ``finish`` or ``fail`` is the last call, and there is one of them."""

    def send(self, text: str) -> None: ...
    def finish(self, text: str, details: str) -> None: ...
    def fail(self, error: CompletionError) -> None: ...
    def gone(self) -> bool:
        """Whether the client has left."""


@dataclass(frozen=True)
class Ended:
    """What is measured of one request: seconds from receipt to its last byte, how it ended, what the engine says."""

    reason: FinishReason | None  # None: it failed
    seconds: float
    measured: Measured = NOTHING_MEASURED


@dataclass(frozen=True)
class Times:
    """Moments of one request, in seconds of the clock: received, handed to the engine, first token, last byte."""

    received: float
    started: float
    first_token: float
    ended: float


def make_details(
    reason: FinishReason, prepared: Prepared, tokens: int, times: Times, measured: Measured = NOTHING_MEASURED
) -> str:
    """The JSON that the last message carries; what the engine says of itself stands there only if it does. Pure."""
    said = {"engine_queue_ms": measured.queue_ms, "reused_blocks": measured.reused_blocks}
    return json.dumps(
        {
            "finish_reason": reason,
            "prompt_tokens": len(prepared.tokens),
            "trimmed_tokens": prepared.trimmed,
            "completion_tokens": tokens,
            "queue_ms": round((times.started - times.received) * 1000, 2),
            "prefill_ms": round((times.first_token - times.started) * 1000, 2),
            "decode_ms": round((times.ended - times.first_token) * 1000, 2),
            **{name: value for name, value in said.items() if value is not None},
        }
    )


def decide_reason(*, cancelled: bool, stopped: bool, tokens: int, limit: int) -> FinishReason:
    """Why a generation ended: fewer tokens than the limit without a stop means that the engine ended the text."""
    if cancelled:
        return FinishReason.CANCELLED
    return FinishReason.LENGTH if tokens >= limit and not stopped else FinishReason.STOP


@dataclass(eq=False)
class CompletionJob:
    """Implements ``scheduler.Job``."""

    id: str
    prepared: Prepared
    options: RequestOptions
    rules: StopRules
    engine: Engine
    next_text: NextText
    answer: Answer
    received: float
    on_end: Callable[[Ended], None]
    clock: Callable[[], float] = time.monotonic

    def run(self, cancelled: Callable[[], bool]) -> None:
        started = self.clock()
        first_token = started
        assembler = TextAssembler(self.rules, self.next_text)

        def on_token(token: int) -> bool:
            nonlocal first_token
            if cancelled():
                return True
            step = assembler.feed(token)
            if assembler.tokens == 1:
                first_token = self.clock()
            if self.options.stream and step.text and not step.over:
                self.answer.send(step.text)
                return False
            held.append(step.text)
            return step.over

        held: list[str] = []
        try:
            measured = self.engine.generate(self.prepared.tokens, self.options, on_token, cancelled)
        except CompletionError as error:
            log.warning("generation refused id=%s error=%s", self.id, error)
            self._fail(error)
            return
        except Exception as error:  # whatever an engine raises, the client must hear of it
            log.exception("generation failed id=%s", self.id)
            self._fail(CompletionError(f"the engine failed: {error}"))
            return
        reason = decide_reason(
            cancelled=cancelled(), stopped=assembler.stopped, tokens=assembler.tokens, limit=self.options.max_tokens
        )
        last = "".join(held) + assembler.flush()
        times = Times(self.received, started, first_token, self.clock())
        self._finish(reason, last, assembler.tokens, times, measured)

    def drop(self) -> None:
        now = self.clock()
        self._finish(FinishReason.CANCELLED, "", 0, Times(self.received, now, now, now))

    def abandoned(self) -> bool:
        return self.answer.gone()

    def _finish(
        self, reason: FinishReason, text: str, tokens: int, times: Times, measured: Measured = NOTHING_MEASURED
    ) -> None:
        self.answer.finish(text, make_details(reason, self.prepared, tokens, times, measured))
        self.on_end(Ended(reason, self.clock() - self.received, measured))

    def _fail(self, error: CompletionError) -> None:
        self.answer.fail(error)
        self.on_end(Ended(None, self.clock() - self.received))
