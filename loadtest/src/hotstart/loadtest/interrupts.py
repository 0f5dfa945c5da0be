"""Ctrl-C reaches every process of a terminal's group at once, and only the command itself may say what it means."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back while the context lasts; one that comes meanwhile is heard at its end.

    A process that is started here keeps it back for good, from its first instant on: it inherits the mask.
    """
    resource_tracker.ensure_running()  # else it would start with the first process, and let Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
