"""A Job's last word: at most 4096 bytes of JSON in the container's termination message, and its exit code. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hotstart.engines.errors import EngineError, HostMemoryFull, Reason, Retryable
from hotstart.exchange.messages import PodFailure
from hotstart.exchange.names import EXIT_KILLED, EXIT_TERMINAL

MAX_BYTES = 4096  # Kubernetes cuts a termination message here
EXIT_RETRYABLE = 1
EXIT_SIGTERM = 143
REPEATED = 40  # characters of a failure's text by which a line of the log is known to say the same
LONGEST_MESSAGE = 1500  # characters; leaves room when each becomes an escape of six bytes


def make_failure(error: BaseException, otherwise: Reason) -> PodFailure:
    """What failed; an error that nobody foresaw gets the reason ``otherwise`` and may pass on another try."""
    known = error if isinstance(error, EngineError) else Retryable(otherwise, _unforeseen(error))
    message = " ".join(known.message.split())[:LONGEST_MESSAGE]
    killed = isinstance(known, HostMemoryFull)
    return PodFailure(reason=known.reason.value, message=message, retryable=known.retryable, killed=killed)


def make_failure_message(failure: PodFailure, tail: Sequence[str] = ()) -> str:
    """The termination message of a failure, with as many of the last lines of the log as fit, the last one last.

    A line that only repeats the failure is left out; where the failure alone is too long, its text is cut.
    """
    value = failure.model_dump()
    lines = [line for line in tail if failure.message[:REPEATED] not in line]
    text = json.dumps({"failure": {**value, "log_tail": lines}})
    while len(text) > MAX_BYTES:
        if lines:
            lines = lines[1:]
        else:
            value["message"] = value["message"][: len(value["message"]) * 3 // 4]
        text = json.dumps({"failure": {**value, "log_tail": lines}})
    return text


def make_result_message(result: dict[str, Any]) -> str:
    """The termination message of a success; facts are left out where they do not fit."""
    text = json.dumps(result)
    return text if len(text) <= MAX_BYTES else json.dumps({**result, "facts": {}})


def exit_code(failure: PodFailure) -> int:
    """64 where another try cannot help, 137 where it needs more memory, else 1."""
    if failure.killed:
        return EXIT_KILLED
    return EXIT_RETRYABLE if failure.retryable else EXIT_TERMINAL


def _unforeseen(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"Unforeseen {type(error).__name__}: {lines[-1] if lines else 'no text'}. The Job's log has the details."
