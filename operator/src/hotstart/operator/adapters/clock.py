"""The clock of this machine."""

from __future__ import annotations

import time


class SystemClock:
    """Implements the port Clock."""

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()
