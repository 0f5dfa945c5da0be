"""Free ports of loopback for servers that tests start."""

from __future__ import annotations

import itertools
import os
import random
import socket

#: Below what the kernel gives to clients (net.ipv4.ip_local_port_range): no connection of a load test takes one before
#: its server listens. Each process begins elsewhere, for several may run tests on one machine.
FIRST, LAST = 15_000, 30_000
CLIENTS_FROM = 32_768
_next = itertools.cycle(range(FIRST, LAST))
for _ in range(random.Random(os.getpid()).randrange(LAST - FIRST)):
    next(_next)


def free_port() -> int:
    """A port of loopback that nothing listens on, and another one at each call."""
    return next(port for port in _next if is_free(port))


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
