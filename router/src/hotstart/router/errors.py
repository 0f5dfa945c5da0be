"""What a client is told when it gets no completion, in the shape that OpenAI's clients parse.

One exception for the whole request path; the server turns it into a status and a body, or into an SSE event once a
stream has begun.
"""

from __future__ import annotations

from typing import Any

from pydantic_core import to_json

INVALID_REQUEST = "invalid_request_error"
RATE_LIMIT = "rate_limit_error"
SERVER_ERROR = "server_error"


class ApiError(Exception):
    """An answer that is no completion.

    Args:
        status: HTTP status.
        message: cause and remedy, for the person who reads it.
        kind: OpenAI's class of error.
        param: the request's field at fault.
        code: a word for programs.
        retry_after: whole seconds for the header ``Retry-After``.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID_REQUEST,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_after = retry_after

    def body(self) -> bytes:
        error: dict[str, Any] = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return to_json({"error": error})

    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def invalid(message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> ApiError:
    """The client's request is at fault."""
    return ApiError(status, message, param=param, code=code)


def unknown_model(model: str) -> ApiError:
    """OpenAI's answer for a model that does not exist."""
    message = f"The model {model!r} does not exist; a model is named 'namespace/name' and GET /v1/models lists them."
    return ApiError(404, message, param="model", code="model_not_found")


def unavailable(message: str, *, code: str, retry_after: int | None = None) -> ApiError:
    """There is no replica to ask."""
    return ApiError(503, message, kind=SERVER_ERROR, code=code, retry_after=retry_after)


def overloaded(message: str, *, code: str, retry_after: int) -> ApiError:
    """There are replicas, and too many requests before this one."""
    return ApiError(429, message, kind=RATE_LIMIT, code=code, retry_after=retry_after)
