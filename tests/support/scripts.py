"""What a test asks of a double of the completion model: a script in the prompt.

A prompt is ``#script {JSON}``; any other prompt is answered at once with ``TEXT``. The doubles are
``fake_triton.FakeTriton`` (in process) and ``scripted_model`` (a Python model for a real Triton).
"""

from __future__ import annotations

import json

TEXT = "    return x\n"
PREFIX = "#script "


def script_when_idle() -> str:
    """A prompt that the real double answers as soon as nothing else runs."""
    return PREFIX + json.dumps({"steps": 0, "step_ms": 0, "text": "", "error": "", "finish": "stop", "wait_idle": True})


def script(*, steps: int = 0, step_ms: float = 1.0, text: str = "x", error: str = "", finish: str = "stop") -> str:
    """A prompt for ``steps`` times ``text``, each in ``step_ms`` milliseconds, and then an end, or ``error``."""
    said = {"steps": steps, "step_ms": step_ms, "text": text, "error": error, "finish": finish}
    return PREFIX + json.dumps(said)
