"""What is kept of each request: enough to reckon every figure of the report exactly, small enough to keep them all."""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class Outcome(StrEnum):
    """How a request ended."""

    OK = "ok"
    FAILED = "failed"
    CANCELLED = "cancelled"  # the client hung up, as planned
    UNFINISHED = "unfinished"  # the run was interrupted while it was in flight


class Sample(NamedTuple):
    """One request. Times in seconds.

    intended: when it was meant to leave, from the start of the run.
    drift: how much later it left: the instant its bytes were handed to the transport, less the time that opening a
        new connection took. Lateness of the generator only.
    first_token: from the intended time to the first text, when streaming.
    latency: from the intended time to the last byte (ok), the failure, or the client's hanging up.
    outcome: an Outcome. reason: of a failure, such as `http_503`, else empty. detail: what the server said.
    tokens: completion tokens by the server's own count, or None when it gave none.
    chunks: pieces of text in a stream.
    """

    intended: float
    drift: float
    latency: float
    outcome: Outcome
    reason: str = ""
    detail: str = ""
    first_token: float | None = None
    tokens: int | None = None
    chunks: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands; counts of requests, `elapsed_s` from its start."""

    planned: int
    sent: int
    ok: int
    failed: int
    cancelled: int
    elapsed_s: float

    @property
    def done(self) -> int:
        """Requests that have ended one way or the other."""
        return self.ok + self.failed + self.cancelled


def merge_progress(parts: list[Progress]) -> Progress:
    """Return the sum over the processes of one run."""
    return Progress(
        planned=sum(part.planned for part in parts),
        sent=sum(part.sent for part in parts),
        ok=sum(part.ok for part in parts),
        failed=sum(part.failed for part in parts),
        cancelled=sum(part.cancelled for part in parts),
        elapsed_s=max((part.elapsed_s for part in parts), default=0.0),
    )
