"""What a request is refused or fails with; each kind has the prefix that the router tells it by."""

from __future__ import annotations


class CompletionError(Exception):
    """Base; ``str()`` is what the client of Triton sees: code, colon, sentence."""

    code = "internal"

    def __str__(self) -> str:
        return f"{self.code}: {super().__str__()}"


class InvalidRequest(CompletionError):
    """The client's mistake; the message names the field and the remedy."""

    code = "invalid"


class Overloaded(CompletionError):
    """The queue is full; another pod, or a moment later, may serve it."""

    code = "overloaded"
