"""An event loop whose clock jumps to whatever is due next: hours of waiting are a test of milliseconds."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any


class JumpingLoop(asyncio.SelectorEventLoop):
    """``time`` is virtual and begins at 0."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(JumpingSelector(self))

    def time(self) -> float:
        return self.now


class JumpingSelector(selectors.SelectSelector):
    """Waits for nothing: time passes instead."""

    def __init__(self, loop: JumpingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "nothing is due, ever: the test would wait for ever"
        self._loop.now += max(0.0, timeout)
        return super().select(0)


def run_in_virtual_time(work: Coroutine[Any, Any, None]) -> None:
    """Runs to the end; what it started is cancelled."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(work)
