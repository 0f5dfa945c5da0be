"""Why a pod cannot serve: one exception, whose reason is a word of the operator's vocabulary."""

from __future__ import annotations

from hotstart.exchange.messages import PodFailure

ENGINE_CORRUPT = "EngineCorrupt"
ENGINE_LOAD_FAILED = "EngineLoadFailed"
WARM_UP_FAILED = "WarmUpFailed"
VERIFICATION_FAILED = "VerificationFailed"
INTERNAL_ERROR = "InternalError"


class BringUpFailed(Exception):
    """``message`` says cause and remedy; ``retryable``: the same may succeed later."""

    def __init__(self, reason: str, message: str, *, retryable: bool) -> None:
        super().__init__(f"{reason}: {message}")
        self.failure = PodFailure(reason=reason, message=message, retryable=retryable)
