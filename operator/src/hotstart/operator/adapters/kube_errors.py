"""The API server's refusals as the operator's own exceptions. Pure."""

from __future__ import annotations

import json

from hotstart.operator.api import Reason
from hotstart.operator.core.errors import Conflict, Forbidden, HotstartError, Refused, Retryable


def make_error(status: int, text: bytes, what: str) -> HotstartError:
    """The exception for an answer of this HTTP status; ``what`` is the request."""
    try:
        message = str(json.loads(text).get("message") or "")
    except (ValueError, AttributeError):
        message = text[:200].decode(errors="replace")
    message = message.rstrip(".") or f"status {status}"
    if status == 409:
        return Conflict(message)
    if status == 403:
        if "exceeded quota" in message:
            return Forbidden(f"{message}. Raise the ResourceQuota, or ask for less.", str(Reason.QUOTA_EXCEEDED))
        return Forbidden(f"{message} ({what}).", str(Reason.ADMISSION_DENIED))
    if status in (400, 422):
        return Refused(f"{message} ({what}).")
    return Retryable(f"{what}: {status}: {message}.")
