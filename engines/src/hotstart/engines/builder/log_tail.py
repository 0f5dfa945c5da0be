"""The last lines of the log, for the report to the operator: no stack traces, no line longer than a condition takes."""

from __future__ import annotations

import logging
import sys
from collections import deque

LINES = 20
LONGEST_LINE = 200  # characters
FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


class LogTail(logging.Handler):
    """Keeps the last ``LINES`` messages."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: deque[str] = deque(maxlen=LINES)

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(f"{record.levelname} {record.getMessage()}".splitlines()[0][:LONGEST_LINE])

    def lines(self) -> tuple[str, ...]:
        """The kept lines, the oldest first."""
        return tuple(self._lines)


def set_up_logging() -> LogTail:
    """Logs to stderr, and returns what keeps the tail."""
    tail = LogTail()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=FORMAT, force=True)
    logging.getLogger().addHandler(tail)
    for noisy in ("botocore", "boto3", "urllib3", "aiohttp.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return tail
