"""Reads what a completion server answers: whole completions, server-sent events, errors in OpenAI's shape. Pure."""

import json
from typing import Any

_DETAIL_CHARACTERS = 200


class RequestFailed(Exception):
    """A request that got no good completion. `reason` is a short stable word, `detail` what is known of the cause."""

    def __init__(self, reason: str, detail: str = "") -> None:
        detail = detail.encode(errors="replace").decode()  # JSON can hold half a surrogate pair, and no report can
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail[:_DETAIL_CHARACTERS]


class AnswerReader:
    """Takes the body of one answer piece by piece and judges it at its end.

    tokens: completion tokens by the server's own count, None if it gave none. chunks: pieces of streamed text so far.
    """

    def __init__(self, *, stream: bool) -> None:
        self._stream = stream
        self._body = bytearray()
        self._parsed_to = 0
        self._finished = False
        self._failure: RequestFailed | None = None
        self.tokens: int | None = None
        self.chunks = 0

    def feed(self, data: bytes) -> None:
        """Take a piece of the body. Never raises for what is in it; `end` tells."""
        self._body += data
        if self._stream:
            self._read_lines()

    def end(self, status: int) -> None:
        """Judge the whole. Raises RequestFailed unless it was a good completion."""
        if status != 200:
            raise RequestFailed(f"http_{status}", _error_message(bytes(self._body)))
        if not self._stream:
            self._note_completion()
        elif self._failure is not None:
            raise self._failure
        elif not self._finished:
            raise RequestFailed("cut_short", "the stream ended without data: [DONE]")

    def _read_lines(self) -> None:
        while (end := self._body.find(b"\n", self._parsed_to)) >= 0:
            line = bytes(self._body[self._parsed_to : end])
            self._parsed_to = end + 1
            if not line.startswith(b"data:"):
                continue
            try:
                self._read_event(line[5:].strip())
            except RequestFailed as failure:
                self._failure = self._failure or failure

    def _read_event(self, data: bytes) -> None:
        if data == b"[DONE]":
            self._finished = True
            return
        event = _parse_object(data)
        if "error" in event:
            raise RequestFailed("stream_error", _error_message(data))
        if _text_of(event):
            self.chunks += 1
        tokens = _usage_tokens(event)
        self.tokens = self.tokens if tokens is None else tokens

    def _note_completion(self) -> None:
        completion = _parse_object(bytes(self._body))
        if not isinstance(completion.get("choices"), list) or not completion["choices"]:
            raise RequestFailed("bad_response", f"no choices in the answer: {bytes(self._body[:120])!r}")
        self.tokens = _usage_tokens(completion)


def _parse_object(text: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except ValueError:
        raise RequestFailed("bad_response", f"the answer is no JSON: {text[:120]!r}") from None
    if not isinstance(parsed, dict):
        raise RequestFailed("bad_response", f"the answer is no JSON object: {text[:120]!r}")
    return parsed


def _text_of(event: dict[str, Any]) -> str:
    choices = event.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return ""
    return str(choices[0].get("text") or "")


def _usage_tokens(parsed: dict[str, Any]) -> int | None:
    usage = parsed.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return tokens if isinstance(tokens, int) else None


def _error_message(text: bytes) -> str:
    """Return the message of an error in OpenAI's shape, else the beginning of the text."""
    try:
        parsed = json.loads(text)
    except ValueError:
        return text[:_DETAIL_CHARACTERS].decode(errors="replace")
    error = parsed.get("error") if isinstance(parsed, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or parsed)
