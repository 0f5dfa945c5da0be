"""The network inside the namespaces: loopback, one link with the node's address, routes. Nothing of it is outside."""

from __future__ import annotations

import subprocess
from pathlib import Path

from hotstart.cluster.plan import LINK, NodePlan


def commands(node: NodePlan, api_only: bool) -> tuple[tuple[str, ...], ...]:
    """The `ip` commands that make the node's network, in order."""
    up = ("link", "set", "lo", "up")
    if api_only:
        return (up, ("address", "add", f"{node.address}/32", "dev", "lo"))
    return (
        up,
        ("link", "add", LINK, "type", "bridge"),
        ("address", "add", f"{node.address}/32", "dev", LINK),
        ("link", "set", LINK, "up"),
        # Without a default route the node itself could not reach a Service's address.
        ("route", "add", "default", "dev", LINK),
    )


def make(node: NodePlan, api_only: bool) -> None:
    for command in commands(node, api_only):
        subprocess.run(("ip", *command), check=True)
    if not api_only:
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
