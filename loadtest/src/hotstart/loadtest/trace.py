"""Reads a recorded trace, so that a load test can replay the bursts of real traffic instead of an even rate.

The format is that of the public Azure LLM inference traces: a CSV with the columns TIMESTAMP (ISO 8601, or seconds),
ContextTokens and GeneratedTokens, one request a line.
"""

import csv
import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from hotstart.loadtest.arrivals import TraceRow

_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def read_trace(path: Path) -> tuple[TraceRow, ...]:
    """Return the rows of the trace in the file's order.

    Raises ValueError naming the file, and the line and column that cannot be read.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = _parse_rows(path, file)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--trace {path}: cannot be read: {error}") from None
    except csv.Error as error:
        raise ValueError(f"--trace {path}: this is no CSV ({error}); is a quotation mark never closed?") from None
    if not rows:
        raise ValueError(f"--trace {path}: there is no request after the line with the column names")
    return rows


def _parse_rows(path: Path, file: Iterable[str]) -> tuple[TraceRow, ...]:
    reader = csv.DictReader(file)
    missing = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise ValueError(
            f"--trace {path}: the first line must name the columns {', '.join(_COLUMNS)}; "
            f"{', '.join(missing)} is missing"
        )
    return tuple(_parse_row(path, reader.line_num, row) for row in reader)


def _parse_row(path: Path, line: int, row: Mapping[str, str | None]) -> TraceRow:
    where = f"--trace {path}, line {line}"
    return TraceRow(
        at=_parse_time(where, row["TIMESTAMP"]),
        context_tokens=_parse_tokens(where, "ContextTokens", row["ContextTokens"]),
        generated_tokens=_parse_tokens(where, "GeneratedTokens", row["GeneratedTokens"]),
    )


def _parse_time(where: str, text: str | None) -> float:
    text = text or ""
    try:
        if math.isfinite(seconds := float(text)):
            return seconds
    except ValueError:
        pass
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{where}: TIMESTAMP {text!r} is neither an ISO 8601 time nor a number of seconds") from None
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


def _parse_tokens(where: str, column: str, text: str | None) -> int:
    if text is None or not text.strip().isdecimal():
        raise ValueError(f"{where}: {column} {text!r} is no count of tokens")
    return int(text)
