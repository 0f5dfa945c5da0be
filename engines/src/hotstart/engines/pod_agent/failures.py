"""Why a pod cannot serve: one exception, whose reason is a word of the operator's vocabulary."""

from __future__ import annotations

import errno

from hotstart.engines.errors import Reason
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


def make_disk_failure(error: OSError) -> BringUpFailed:
    """The failure for what the pod's disk, or the system below it, refused."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        message = f"No room on the pod's disk ({error}): free space on the node."
        return BringUpFailed(Reason.DISK_FULL.value, message, retryable=True)
    return BringUpFailed(INTERNAL_ERROR, f"The pod's agent was refused by its system: {error!r}", retryable=True)
