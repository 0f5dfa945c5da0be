"""From a request's prompt and suffix to the engine's tokens, within the declared limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from hotstart.engines.triton.completion.errors import InvalidRequest
from hotstart.engines.triton.completion.trimming import decide_end, decide_start, find_line_starts, find_whole
from hotstart.exchange.messages import PromptFormat, ServingOptions

SUFFIX_SHARE = 4  # a suffix may take a quarter of the limit, and more where the prefix leaves it free
CHARACTERS_A_TOKEN = 64  # text further from the cursor than limit * this is not even tokenized


class Encoded(Protocol):
    """What ``tokenizers.Tokenizer`` makes of one text."""

    @property
    def ids(self) -> list[int]: ...
    @property
    def offsets(self) -> list[tuple[int, int]]: ...


class TokenizerLike(Protocol):
    """The part of ``tokenizers.Tokenizer`` that is used."""

    def encode_batch(self, texts: Sequence[str], /, *, add_special_tokens: bool = True) -> Sequence[Encoded]: ...
    def token_to_id(self, token: str) -> int | None: ...


@dataclass(frozen=True)
class Prepared:
    """The engine's input, and how many tokens of the request were left out."""

    tokens: tuple[int, ...]
    trimmed: int


class BadFormat(Exception):
    """The serving options ask for markers that the tokenizer does not have; found when the model is loaded."""


@dataclass(frozen=True)
class PromptFormatter:
    """Made once a model: ``begin`` is the token that begins every input, if the checkpoint has one."""

    tokenizer: TokenizerLike
    limit: int
    begin: int | None = None
    markers: tuple[int, int, int] | None = None  # prefix, suffix, middle; None is the plain format

    @property
    def own_tokens(self) -> int:
        """How many tokens of an input are the format's own: they are in every one, whatever its text."""
        return (self.begin is not None) + len(self.markers or ())

    def prepare(self, prompt: str, suffix: str) -> Prepared:
        """The tokens of one request.

        Raises:
            InvalidRequest: there is nothing to complete, or a suffix where the format has no place for one.
        """
        head = () if self.begin is None else (self.begin,)
        if self.markers is None:
            if suffix:
                raise InvalidRequest("suffix needs a model whose prompt format is fim; this one's is plain")
            kept, trimmed = self._keep_end(prompt, self.limit - len(head))
            if not head + kept:
                raise InvalidRequest("prompt is empty")
            return Prepared(head + kept, trimmed)
        if not prompt and not suffix:
            raise InvalidRequest("prompt and suffix are both empty")
        room = self.limit - len(head) - len(self.markers)
        wanted = len(self._encode_end(prompt, room)[0].ids)
        after, trimmed_after = self._keep_start(suffix, max(room // SUFFIX_SHARE, room - wanted))
        before, trimmed_before = self._keep_end(prompt, room - len(after))
        first, second, third = self.markers
        tokens = (*head, first, *before, second, *after, third)
        return Prepared(tokens, trimmed_before + trimmed_after)

    def _encode(self, text: str) -> tuple[Encoded, list[int]]:
        encoded = encode(self.tokenizer, text)
        return encoded, find_line_starts(text, encoded.offsets)

    def _encode_end(self, text: str, limit: int) -> tuple[Encoded, list[int]]:
        return self._encode(text[near_end(text, limit * CHARACTERS_A_TOKEN) :])

    def _keep_end(self, text: str, limit: int) -> tuple[tuple[int, ...], int]:
        encoded, line_starts = self._encode_end(text, limit)
        tokens = tuple(encoded.ids)
        start = decide_start(len(tokens), limit, line_starts)
        return tokens[start:], start

    def _keep_start(self, text: str, limit: int) -> tuple[tuple[int, ...], int]:
        encoded, line_starts = self._encode(text[: limit * CHARACTERS_A_TOKEN])
        tokens = tuple(encoded.ids)
        end = find_whole(encoded.offsets, decide_end(len(tokens), limit, line_starts))
        return tokens[:end], len(tokens) - end


def encode(tokenizer: TokenizerLike, text: str) -> Encoded:
    """The tokens of a text. ``Tokenizer.encode`` would hold the interpreter's lock, and with it every generation."""
    return tokenizer.encode_batch([text], add_special_tokens=False)[0]


def near_end(text: str, longest: int) -> int:
    """From where ``text`` is looked at: what is further than ``longest`` characters from its end can be no input.

    It moves in steps of ``longest``, and to a line's start where there is one, so that a growing text keeps its start.
    """
    if len(text) <= 2 * longest:
        return 0
    start = (len(text) // longest - 1) * longest
    newline = text.find("\n", start, start + longest // 2)
    return newline + 1 if newline >= 0 else start


def make_formatter(tokenizer: TokenizerLike, serving: ServingOptions, begin: int | None) -> PromptFormatter:
    """The formatter of a model.

    Raises:
        BadFormat: a marker is missing in the tokenizer, or the limit leaves no room for a prompt.
    """
    markers = None
    if serving.prompt_format is PromptFormat.FIM:
        first, second, third = (
            _marker(tokenizer, field, getattr(serving, field)) for field in ("fim_prefix", "fim_suffix", "fim_middle")
        )
        markers = (first, second, third)
    made = PromptFormatter(tokenizer, serving.max_input_tokens, begin, markers)
    if made.limit <= made.own_tokens:
        raise BadFormat(f"max_input_tokens must be above {made.own_tokens}, which the format's own tokens take")
    return made


def _marker(tokenizer: TokenizerLike, field: str, text: str) -> int:
    number = tokenizer.token_to_id(text) if text else None
    if number is None:
        raise BadFormat(f"{field} {text!r} is no token of the checkpoint's tokenizer; use its own marker, or plain")
    return number
