"""The pod's states as a table: state x event -> state. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from hotstart.exchange.messages import PodState as S


class Event(StrEnum):
    ASSIGNED = "assigned"  # a new assignment, or the same one with other serving options
    ADOPTED = "adopted"  # Triton already serves the assignment: the agent was restarted
    FETCHED = "fetched"  # all files are on the disk
    VERIFIED = "verified"  # and are what the assignment says
    LOADED = "loaded"
    WARMED = "warmed"
    TRITON_LOST = "triton lost"  # Triton went away, or has lost the model
    FAILED = "failed"
    RETRIED = "retried"


BUSY = (S.FETCHING, S.VERIFYING, S.LOADING, S.WARMING, S.RELOADING)

TABLE: Mapping[tuple[S, Event], S] = {
    **{(state, Event.ASSIGNED): S.FETCHING for state in S},
    **{(state, Event.FAILED): S.FAILED for state in BUSY},
    (S.EMPTY, Event.ADOPTED): S.WARMING,
    (S.FETCHING, Event.FETCHED): S.VERIFYING,
    (S.VERIFYING, Event.VERIFIED): S.LOADING,
    (S.LOADING, Event.LOADED): S.WARMING,
    (S.WARMING, Event.WARMED): S.READY,
    (S.LOADING, Event.TRITON_LOST): S.LOADING,
    (S.WARMING, Event.TRITON_LOST): S.LOADING,
    (S.READY, Event.TRITON_LOST): S.RELOADING,
    (S.RELOADING, Event.TRITON_LOST): S.RELOADING,
    (S.RELOADING, Event.LOADED): S.WARMING,
    (S.FAILED, Event.RETRIED): S.FETCHING,
}


class ImpossibleEvent(Exception):
    """The event cannot happen in that state: a fault of the agent."""


def next_state(state: S, event: Event) -> S:
    """The state after ``event``.

    Raises:
        ImpossibleEvent: the table has no such pair.
    """
    try:
        return TABLE[state, event]
    except KeyError:
        raise ImpossibleEvent(f"{event.value} in state {state.value}") from None
