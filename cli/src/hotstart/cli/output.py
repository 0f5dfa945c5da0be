"""What a person sees: figures on stdout (or one JSON object with --json), all else on stderr."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hotstart.engines.builder.state import BuildState
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

LOOK_SECONDS = 0.2


class Output:
    """One run's way to the terminal."""

    def __init__(self, *, as_json: bool, quiet: bool = False) -> None:
        self._as_json = as_json
        self._console = Console(highlight=False, soft_wrap=True)
        self._errors = Console(stderr=True, highlight=False, soft_wrap=True)
        self._quiet = quiet or not self._errors.is_terminal

    def show(self, result: Mapping[str, Any]) -> None:
        """The result: JSON, or a line for each entry; a list is one line each, indented."""
        if self._as_json:
            sys.stdout.write(json.dumps(result, indent=2, sort_keys=True) + "\n")
            return
        for line in lines_of(result):
            self._console.print(line, markup=False)

    def fail(self, reason: str, message: str) -> None:
        """A failure, with its reason's word in the runbook."""
        if self._as_json:
            sys.stdout.write(json.dumps({"failure": {"reason": reason, "message": message}}, indent=2) + "\n")
        self._errors.print(f"{reason}: {message}", markup=False)

    def warn(self, message: str) -> None:
        """What went wrong beside a result that stands."""
        self._errors.print(f"warning: {message}", markup=False)

    @contextmanager
    def progress(self, state: BuildState) -> Iterator[None]:
        """A bar that follows ``state`` while the block runs; one line a phase where stderr is no terminal."""
        ended = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(state, ended), name="progress")
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()

    def _watch(self, state: BuildState, ended: threading.Event) -> None:
        if self._quiet:
            return self._tell_phases(state, ended)
        columns = (TextColumn("{task.description:12}"), BarColumn(), TextColumn("{task.fields[left]}"))
        with Progress(*columns, TimeElapsedColumn(), console=self._errors, transient=True) as bar:
            task = bar.add_task("", total=100, left="")
            done = False
            while not done:
                done = ended.wait(LOOK_SECONDS)
                report = state.report()
                left = "" if report.eta_seconds is None else f"about {report.eta_seconds:.0f} s left"
                bar.update(task, completed=report.percent, description=report.phase.value, left=left)
        return None

    def _tell_phases(self, state: BuildState, ended: threading.Event) -> None:
        told, done = "", False
        while not done:
            done = ended.wait(LOOK_SECONDS)
            phase = state.phase.value
            if phase != told:
                self._errors.print(f"{phase} ...", markup=False)
                told = phase


def lines_of(value: Any, indent: str = "") -> Iterator[str]:
    """A result as lines: what is in a mapping or a list is indented below its name."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            nested = isinstance(part, Mapping | list | tuple)
            yield f"{indent}{name}:" if nested else f"{indent}{name}: {part}"
            if nested:
                yield from lines_of(part, f"{indent}  ")
    elif isinstance(value, list | tuple):
        for part in value:
            nested = isinstance(part, Mapping | list | tuple)
            yield from lines_of(part, f"{indent}  ") if nested else (f"{indent}{part}",)
