"""The process's signals are its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

# As the operator's process does it, with a library that takes the loop's handlers for itself, as kopf does.
PROGRAM = """
import asyncio, os, signal
from hotstart.operator.app.process import listen_for_signals

async def run(number):
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    listen_for_signals(stop)
    loop.add_signal_handler(number, print, "taken by the library")
    os.kill(os.getpid(), number)
    await asyncio.wait_for(stop.wait(), 20)
    print("stopped")

asyncio.run(run(signal.{name}))
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_stops_it_whoever_takes_the_loops_handlers(name: str) -> None:
    program = PROGRAM.replace("{name}", name)
    done = subprocess.run([sys.executable, "-u", "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("stopped\n", 0), done.stderr
