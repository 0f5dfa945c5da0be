"""Free ports of loopback for servers that tests start."""

from __future__ import annotations

import itertools
import random
import socket
from collections.abc import Iterator
from functools import cache

#: Below what the calibrator takes for its Triton (15,000) and what the kernel gives to clients
#: (net.ipv4.ip_local_port_range): nobody else takes one before its server listens.
FIRST, LAST = 5_000, 15_000
BLOCK = 500  # ports that one process has to itself
_held: list[socket.socket] = []


def free_port() -> int:
    """A port of loopback that nothing listens on, and another one at each call."""
    return next(port for port in _block() if is_free(port))


@cache
def _block() -> Iterator[int]:
    """The ports of this process: the kernel gives a block's name to one process of the machine, until that ends."""
    starts = range(FIRST, LAST, BLOCK)
    for start in random.sample(starts, len(starts)):
        name = socket.socket(socket.AF_UNIX)
        try:
            name.bind(f"\0hotstart-tests-ports-{start}")
        except OSError:
            name.close()
        else:
            _held.append(name)
            return itertools.cycle(range(start, start + BLOCK))
    raise RuntimeError(f"{len(starts)} processes of tests hold all ports from {FIRST} to {LAST}")


def is_free(port: int) -> bool:
    """Whether a server of loopback could listen on it now."""
    with socket.socket() as listener:
        # A connection that ended lately keeps no server from listening here.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
