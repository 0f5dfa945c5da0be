"""The queue of one model: first in, first out, bounded, each place with a limit of time. Pure: no clock, no futures.

The lane keeps one; a retried request goes back to the front, as it has waited already.
"""

from __future__ import annotations

from collections import OrderedDict
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
    """Places by ticket, oldest first; every operation is O(1)."""

    def __init__(self) -> None:
        self._places: OrderedDict[int, Place[ItemT]] = OrderedDict()
        self._next = 0

    def __len__(self) -> int:
        return len(self._places)

    def put(self, item: ItemT, since: float, *, front: bool = False) -> int:
        """Adds ``item`` and returns its ticket."""
        self._next += 1
        self._places[self._next] = Place(self._next, item, since)
        if front:
            self._places.move_to_end(self._next, last=False)
        return self._next

    def first(self) -> Place[ItemT] | None:
        return next(iter(self._places.values()), None)

    def drop(self, ticket: int) -> ItemT | None:
        """Takes one out: it is served, given up by its client, or too late. None where it is out already."""
        place = self._places.pop(ticket, None)
        return None if place is None else place.item

    def places(self) -> tuple[Place[ItemT], ...]:
        """All places, oldest first."""
        return tuple(self._places.values())
