"""Which process a file speaks of: a number alone may be another program by now, so the start time stands beside it."""

from __future__ import annotations

import json
import os
import select
import signal
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process of this machine, told from any later one with the same number."""

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        return started_at(self.pid) == self.started


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the name; None where there is no such process, or only its zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields


def started_at(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def process(pid: int) -> Process | None:
    started = started_at(pid)
    return None if started is None else Process(pid, started)


def child_of(parent: int) -> Process | None:
    """The first child of a process."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields and int(fields[1]) == parent:
                return Process(int(entry.name), int(fields[19]))
    return None


def write(path: Path, known: Process) -> None:
    unfinished = path.with_name(f".{path.name}.new")
    unfinished.write_text(json.dumps(asdict(known)) + "\n")
    unfinished.rename(path)


def read(path: Path) -> Process | None:
    """The process that the file speaks of, if it still runs."""
    try:
        known = Process(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    return known if known.alive else None


def wait_ended(known: Process, seconds: float) -> bool:
    """Whether the process ended within the time."""
    try:
        handle = os.pidfd_open(known.pid)
    except ProcessLookupError:
        return True
    try:
        if not known.alive:
            return True
        waiting = select.poll()
        waiting.register(handle, select.POLLIN)
        return bool(waiting.poll(seconds * 1000))
    finally:
        os.close(handle)


def end(known: Process, number: signal.Signals) -> None:
    """Signal the process; that it has just ended by itself is as good."""
    try:
        handle = os.pidfd_open(known.pid)
    except ProcessLookupError:
        return
    try:
        if known.alive:
            signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return
    finally:
        os.close(handle)
