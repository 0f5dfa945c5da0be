"""What Triton's refusal of a model means: its own words -> reason, sentence, whether another try may help. Pure."""

from __future__ import annotations

import re

from hotstart.engines.pod_agent.failures import ENGINE_LOAD_FAILED, VERIFICATION_FAILED, BringUpFailed
from hotstart.engines.triton.completion.names import REPLAY_FAILED

_REPLAY = re.compile(re.escape(REPLAY_FAILED) + r"[^\n]*")


def make_load_failure(text: str) -> BringUpFailed:
    """The failure for a load that Triton refused with ``text``."""
    replay = _REPLAY.search(text)
    if replay is not None:
        message = f"{replay.group().strip()} It is not served here; it was right where it was built."
        return BringUpFailed(VERIFICATION_FAILED, message, retryable=False)
    return BringUpFailed(ENGINE_LOAD_FAILED, f"Triton cannot load the engine: {text}", retryable=True)
