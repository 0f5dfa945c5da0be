"""An engine's files as parts of multipart uploads: which there are, which to ask URLs for, what answers mean. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import islice

from hotstart.exchange.messages import WantedPart

PART_SIZE = 16 * 1024 * 1024  # bytes; the last part of a file is smaller
LOT = 16  # URLs held at once: a URL lives 15 minutes
MAX_TRIES = 8  # of one part against a store that fails
MAX_REFUSALS = 5  # of one part with fresh URLs
LONGEST_WAIT = 20.0  # seconds between two tries


@dataclass(frozen=True, order=True)
class Part:
    """One part: ``number`` from 1, ``start`` and ``size`` in bytes of the file ``path``."""

    path: str
    number: int
    start: int
    size: int

    @property
    def key(self) -> tuple[str, int]:
        return self.path, self.number


class PutOutcome(Enum):
    """What to do after a PUT of a part."""

    DONE = "done"
    ASK_AGAIN = "ask again"  # the URL has expired or is refused: the operator signs another
    TRY_AGAIN = "try again"  # the store failed or is busy
    GIVE_UP = "give up"


def split_file(path: str, size: int, part_size: int = PART_SIZE) -> tuple[Part, ...]:
    """The parts of one file, in order; an empty file is one empty part."""
    count = max(1, -(-size // part_size))
    return tuple(
        Part(path, n + 1, n * part_size, min(part_size, size - n * part_size) if size else 0) for n in range(count)
    )


def decide_wanted(
    parts: Iterable[Part],
    *,
    begun: Collection[str],
    done: Collection[tuple[str, int]],
    held: Collection[tuple[str, int]],
    lot: int = LOT,
) -> tuple[WantedPart, ...]:
    """Which of the next ``lot`` parts to ask URLs for: their upload is begun, they are not done, no URL is held.

    Not further ones, whose URLs would be old once it is their turn.
    """
    coming = islice((part for part in parts if part.path in begun and part.key not in done), lot)
    return tuple(WantedPart(path=part.path, number=part.number) for part in coming if part.key not in held)


def decide_put(status: int | None, tries: int, refusals: int) -> PutOutcome:
    """After an answer with ``status`` (None: no answer); ``tries`` and ``refusals`` count this one.

    400 is in with the refusals: stores answer it for an expired URL too.
    """
    if status is not None and 200 <= status < 300:
        return PutOutcome.DONE
    if status in (400, 401, 403):
        return PutOutcome.ASK_AGAIN if refusals < MAX_REFUSALS else PutOutcome.GIVE_UP
    if status is None or status >= 500 or status in (408, 409, 429):
        return PutOutcome.TRY_AGAIN if tries < MAX_TRIES else PutOutcome.GIVE_UP
    return PutOutcome.GIVE_UP


def waits(first: float = 0.5) -> Iterator[float]:
    """Seconds to wait before each further try: doubling, at most ``LONGEST_WAIT``."""
    wait = first
    while True:
        yield min(wait, LONGEST_WAIT)
        wait *= 2
