"""The queue of one model: first in, first out, bounded, each place with a limit of time. Pure: no clock, no futures.

The lane keeps one; retried requests stand before all others, as they have waited already.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")


@dataclass(frozen=True, slots=True)
class Place(Generic[ItemT]):
    """One waiting request. ``since`` is when its wait began, in seconds of the lane's clock."""

    ticket: int
    item: ItemT
    since: float


class WaitQueue(Generic[ItemT]):
    """Two lines of places by ticket, each in the order in which they came; every operation is O(1)."""

    def __init__(self) -> None:
        self._again: dict[int, Place[ItemT]] = {}
        self._new: dict[int, Place[ItemT]] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._again) + len(self._new)

    def put(self, item: ItemT, since: float, *, again: bool = False) -> int:
        """Adds ``item`` and returns its ticket. ``since`` never goes back from one call to the next."""
        self._next += 1
        line = self._again if again else self._new
        line[self._next] = Place(self._next, item, since)
        return self._next

    def longest_waiting(self) -> Place[ItemT] | None:
        """The one whose wait began first; it need not be the next to be served."""
        firsts = [next(iter(line.values())) for line in (self._again, self._new) if line]
        return min(firsts, key=lambda place: place.since, default=None)

    def drop(self, ticket: int) -> ItemT | None:
        """Takes one out: it is served, given up by its client, or too late. None where it is out already."""
        place = self._again.pop(ticket, None) or self._new.pop(ticket, None)
        return None if place is None else place.item

    def places(self) -> Iterator[Place[ItemT]]:
        """All places in the order in which they are served; nothing may be put or dropped meanwhile."""
        yield from self._again.values()
        yield from self._new.values()
