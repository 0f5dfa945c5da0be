"""What differs between wanted and observed, so that a second run writes nothing. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def covers(observed: Any, wanted: Any) -> bool:
    """Whether everything that is wanted stands in what is observed; defaults that the API server added do not matter.

    Lists match by position and length: the operator owns the lists that it applies.
    """
    if isinstance(wanted, Mapping):
        return isinstance(observed, Mapping) and all(
            name in observed and covers(observed[name], value) for name, value in wanted.items()
        )
    if isinstance(wanted, list | tuple):
        return (
            isinstance(observed, list | tuple)
            and len(observed) == len(wanted)
            and all(covers(left, right) for left, right in zip(observed, wanted, strict=True))
        )
    return bool(observed == wanted)


def diff_merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON merge patch (RFC 7396) from ``old`` to ``new``; empty where they are equal. Neither may hold None."""
    patch: dict[str, Any] = {name: None for name in old if name not in new}
    for name, value in new.items():
        if name not in old:
            patch[name] = value
        elif isinstance(value, Mapping) and isinstance(old[name], Mapping):
            if inner := diff_merge(old[name], value):
                patch[name] = inner
        elif old[name] != value:
            patch[name] = value
    return patch
