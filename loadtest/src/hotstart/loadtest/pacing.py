"""Sleeping until an instant, more finely than an event loop can.

asyncio rounds its waits up to whole milliseconds (epoll), which alone would use up a drift of 1 ms. On Linux a timerfd
wakes the loop within tens of microseconds and costs no processor time; elsewhere the last 1.5 ms are spent spinning.
"""

import asyncio
import ctypes
import os
import sys
import time
from typing import Protocol

# <sys/timerfd.h>, <time.h>: the same on every Linux architecture that Python runs on, but for O_NONBLOCK and O_CLOEXEC,
# which os knows.
_CLOCK_MONOTONIC = 1
_TFD_TIMER_ABSTIME = 1
_SPIN_S = 0.0015


class Clock(Protocol):
    """The clock of a run: seconds that only grow, the same in every process of one machine."""

    def now(self) -> float:
        """Return the present instant in seconds."""

    async def sleep_until(self, when: float) -> None:
        """Return at `when` or as soon as possible after it, having let other tasks run."""

    def close(self) -> None:
        """Give back what the clock holds."""


class SpinClock:
    """Sleeps by the event loop and spins through the last 1.5 ms, letting other tasks run."""

    def now(self) -> float:
        return time.monotonic()

    async def sleep_until(self, when: float) -> None:
        rest = when - time.monotonic() - _SPIN_S
        await asyncio.sleep(max(rest, 0))
        while time.monotonic() < when:  # noqa: ASYNC110 - no event tells the time; this is the spinning
            await asyncio.sleep(0)

    def close(self) -> None:
        pass


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("it_interval", _Timespec), ("it_value", _Timespec))


class TimerfdClock:
    """Sleeps by a Linux timerfd that the running event loop watches. One sleeper at a time.

    Raises OSError when the kernel gives no timer.
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._on_expired)
        self._waiter: asyncio.Future[None] | None = None

    def now(self) -> float:
        return time.monotonic()

    async def sleep_until(self, when: float) -> None:
        if self._waiter is not None:
            raise RuntimeError("this clock has one sleeper already")
        # An instant of zero would disarm the timer; one that has passed makes it expire at once.
        seconds, nanoseconds = divmod(max(round(when * 1e9), 1), 1_000_000_000)
        alarm = _Itimerspec(it_value=_Timespec(seconds, nanoseconds))
        if self._libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, ctypes.byref(alarm), None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime failed")
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _on_expired(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # armed anew between the expiry and this call
            return
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def make_clock() -> Clock:
    """Return the finest clock of this system for the running event loop."""
    if sys.platform == "linux":
        return TimerfdClock()
    return SpinClock()
