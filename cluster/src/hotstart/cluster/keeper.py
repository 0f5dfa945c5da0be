"""The one process of a cluster outside its namespaces: it starts the init, waits for its end, and removes its cgroups.

`up` holds a pipe to it until the cluster stands: if `up` dies before, the keeper ends everything. If the keeper itself
is killed, the kernel kills the init with it (and so all the rest), and the next `up` or `down` removes the cgroups.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from hotstart.cluster import cgroups, processes
from hotstart.cluster.errors import ClusterError
from hotstart.cluster.layout import Layout

KEEP = b"k"
API_ONLY = "api-only"


class _AskedToEnd(Exception):
    """SIGTERM came: `down` was called."""


def init_argv(layout: Layout, progress: int, rootless: bool) -> tuple[str, ...]:
    """The init in namespaces of its own; each process of this line dies with the one before it."""
    user = ("--user", "--map-root-user") if rootless else ()
    return (
        "setpriv",
        "--pdeathsig",
        "KILL",
        "unshare",
        *user,
        "--mount",
        "--pid",
        "--net",
        "--ipc",
        "--uts",
        "--fork",
        "--kill-child",
        sys.executable,
        "-m",
        "hotstart.cluster.node_init",
        str(layout.root),
        str(progress),
    )


@dataclass(frozen=True)
class Pipes:
    lifeline: int
    progress: int


def _asked(_number: int, _frame: FrameType | None) -> None:
    raise _AskedToEnd


def _wait(child: subprocess.Popen[bytes], lifeline: int) -> None:
    """Return when the cluster is to end: its init ended, or `up` died before the cluster stood."""
    ended = os.pidfd_open(child.pid)
    watched = [ended, lifeline]
    while True:
        ready, _, _ = select.select(watched, [], [])
        if ended in ready:
            return
        if os.read(lifeline, 1) != KEEP:
            print("`up` ended before the cluster stood: ending it", flush=True)
            return
        watched.remove(lifeline)


def _end(child: subprocess.Popen[bytes]) -> None:
    init = processes.child_of(child.pid)
    child.kill()
    child.wait()
    if init is not None:
        processes.end(init, signal.SIGKILL)
        processes.wait_ended(init, 10)


def keep(layout: Layout, pipes: Pipes, api_only: bool) -> None:
    """The cluster's life, to its end. Only a whole cluster has cgroups: pods and their kubelet need them."""
    signal.signal(signal.SIGTERM, _asked)
    child: subprocess.Popen[bytes] | None = None
    try:
        if not api_only:
            cgroups.make(layout.cgroup)
        with (layout.logs / "init.log").open("wb") as log:
            child = subprocess.Popen(
                init_argv(layout, pipes.progress, os.geteuid() != 0),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(pipes.progress,),
                cwd="/",
            )
        os.close(pipes.progress)
        _wait(child, pipes.lifeline)
    except _AskedToEnd:
        print("asked to end", flush=True)
    except ClusterError as problem:
        os.write(pipes.progress, json.dumps({"error": str(problem)}).encode() + b"\n")
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if child is not None:
            _end(child)
        if not api_only:
            cgroups.remove(layout.cgroup)


def main() -> None:
    root, lifeline, progress, kind = sys.argv[1:5]
    layout = Layout(Path(root))
    own = processes.process(os.getpid())
    assert own is not None
    processes.write(layout.keeper_file, own)
    keep(layout, Pipes(int(lifeline), int(progress)), kind == API_ONLY)


if __name__ == "__main__":
    main()
