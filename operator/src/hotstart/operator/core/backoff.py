"""Back-off: how long to wait before another try. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """Exponential: ``base`` seconds after the first failure, doubled with each further one, ``cap`` at most."""

    base: float
    cap: float

    def delay(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row; 0 after none."""
        if failures <= 0:
            return 0.0
        return min(self.cap, self.base * 2.0 ** min(failures - 1, 30))


RECONCILE = Backoff(0.2, 30.0)  # a reconcile that raised
JOB_RETRYABLE = Backoff(5.0, 30.0)  # what a mended Secret, bucket or network heals
INSPECT_TERMINAL = Backoff(20.0, 300.0)  # what only another content of the bucket heals: looked at again, rarely
BUILD_KILLED = Backoff(20.0, 300.0)  # a build without enough memory: it is asked for more, and a node may have none
POD_CRASH = Backoff(2.0, 60.0)  # a replica that failed
STOPPED_RETRY_SECONDS = 300.0  # a stopped revision tries one pod again
