"""The progress bar, drawn by the parent process on standard error, so that standard output stays the report's."""

from collections.abc import Iterator
from contextlib import contextmanager

from hotstart.loadtest.drive import ProgressCallback
from hotstart.loadtest.sample import Progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar


@contextmanager
def show_progress(console: Console, planned: int, *, enabled: bool) -> Iterator[ProgressCallback]:
    """Show a bar of `planned` requests while the context lasts; gives the callback that moves it.

    Nothing is drawn when not enabled or when the console is no terminal, so that logs hold no control characters.
    """
    bar = ProgressBar(
        TextColumn("sent"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[in_flight]} in flight, {task.fields[failed]} failed"),
        console=console,
        transient=True,
        disable=not enabled or not console.is_terminal,
    )
    task = bar.add_task("run", total=planned, in_flight=0, failed=0)

    def move(latest: Progress) -> None:
        bar.update(task, completed=latest.sent, in_flight=latest.sent - latest.done, failed=latest.failed)

    with bar:
        yield move
