"""The operator's exceptions: one tree, in which Retryable may pass by itself and Terminal does not."""

from __future__ import annotations


class HotstartError(Exception):
    """Base; the message is a sentence with cause and remedy."""


class Retryable(HotstartError):
    """May pass by itself: try again with back-off."""


class Terminal(HotstartError):
    """Stays until somebody changes something."""


class Conflict(Retryable):
    """The object changed, or stands already: gather again."""


class Taken(Retryable):
    """Something that is not ours, or no longer seen as ours, has the object's name. The message names it."""


class Forbidden(Retryable):
    """The API server refuses: RBAC, a quota, or an admission rule. ``reason`` is a Reason of the api."""

    def __init__(self, message: str, reason: str = "AdmissionDenied") -> None:
        super().__init__(message)
        self.reason = reason


class Refused(Terminal):
    """The API server holds the object for invalid."""


class StoreFailed(Retryable):
    """The engine store denies or does not answer. ``reason`` is AccessDenied, BucketNotFound or StoreUnreachable."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class BadSettings(Terminal):
    """The operator's environment is wrong; the message names the variable."""
