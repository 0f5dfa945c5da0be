"""What a test asks of a double of the completion model: a script in the prompt, understood by the fake and the real Triton.

A prompt is ``#script {JSON}``; any other prompt is answered at once with ``TEXT``. The doubles are
``fake_triton.FakeTriton`` (in process) and ``scripted_model`` (a Python model for a real Triton).
"""

from __future__ import annotations

import json

TEXT = "    return x\n"
PREFIX = "#script "


def script(*, steps: int = 0, step_ms: float = 1.0, text: str = "x", error: str = "", finish: str = "stop") -> str:
    """A prompt that generates ``steps`` times ``text``, ``step_ms`` milliseconds each, then ends or fails with ``error``."""
    said = {"steps": steps, "step_ms": step_ms, "text": text, "error": error, "finish": finish}
    return PREFIX + json.dumps(said)
