"""Durations as people write them (`30s`, `250ms`, `2m`), at the edge between the command line and seconds."""

import re

_UNIT_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>us|ms|s|m|h)")


def parse_duration(text: str) -> float:
    """Return the seconds that `text` means: a number and one of the units us, ms, s, m, h.

    Raises ValueError when the number or the unit is missing; a bare `30` is refused because nobody can tell its unit.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no duration; write a number with its unit, such as 30s, 250ms or 2m")
    return float(match["number"]) * _UNIT_SECONDS[match["unit"]]


def format_milliseconds(seconds: float) -> str:
    """Return `seconds` as milliseconds with a precision that fits their size: `0.21 ms`, `34.5 ms`, `1204 ms`."""
    milliseconds = seconds * 1e3
    if milliseconds < 10:
        return f"{milliseconds:.2f} ms"
    if milliseconds < 1000:
        return f"{milliseconds:.1f} ms"
    return f"{milliseconds:.0f} ms"
