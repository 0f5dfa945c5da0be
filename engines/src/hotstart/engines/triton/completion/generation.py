"""One generation: the engine's tokens become text, up to a stop, a limit or a cancellation.

``TextAssembler`` is fed a token at a time, on the engine's worker thread, and says what may be sent and whether
to go on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from hotstart.engines.triton.completion.stops import StopRules, scan

NextText = Callable[[int], str | None]  # a token's id -> text that became whole with it (incomplete UTF-8 is held back)


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Step:
    """After one token: text that may be sent now, and whether the completion is over."""

    text: str
    over: bool


class TextAssembler:
    """Holds the text of one completion. Not thread safe: one generation feeds it."""

    def __init__(self, rules: StopRules, next_text: NextText) -> None:
        self._rules = rules
        self._next_text = next_text
        self._text = ""
        self._sent = 0
        self.tokens = 0
        self.stopped = False

    def feed(self, token: int) -> Step:
        """Takes one token that is no end-of-text token."""
        self.tokens += 1
        piece = self._next_text(token)
        if not piece:
            return Step("", False)
        self._text += piece
        found = scan(self._text, self._rules)
        if found.end is not None:
            self._text = self._text[: found.end]
            self.stopped = True
        return Step(self._take(found.safe), self.stopped)

    def flush(self) -> str:
        """What is still held back, once no token follows: it is no stop after all."""
        return self._take(len(self._text))

    @property
    def text(self) -> str:
        """All text so far."""
        return self._text

    def _take(self, end: int) -> str:
        piece = self._text[self._sent : end]
        self._sent = max(self._sent, end)
        return piece
