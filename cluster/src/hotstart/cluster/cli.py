"""The command `hotstart-cluster`: up, fetch, down, status, load-image, forward and shell."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hotstart.cluster import forward, images, lifecycle, status
from hotstart.cluster.cluster import Cluster
from hotstart.cluster.errors import ClusterError
from hotstart.cluster.layout import state_dir
from hotstart.cluster.shell import enter


class Steps:
    """Prints each step with the time since the command began."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, text: str) -> None:
        print(f"{time.monotonic() - self._began:6.1f} s  {text}", flush=True)


def _up(options: argparse.Namespace) -> int:
    say = Steps()
    wanted = lifecycle.Wanted(options.api_only, options.api_port, options.s3_port)
    cluster = lifecycle.up(options.dir, wanted, say)
    say(f"the cluster stands; use it with: . {cluster.layout.env_file}")
    return 0


def _fetch(options: argparse.Namespace) -> int:
    say = Steps()
    programs = lifecycle.fetch(lifecycle.Wanted(options.api_only), say)
    say(f"the cluster's {len(programs)} programs are there")
    return 0


def _down(options: argparse.Namespace) -> int:
    say = Steps()
    say("the cluster is gone" if lifecycle.down(options.dir) else f"no cluster in {options.dir}")
    return 0


def _status(options: argparse.Namespace) -> int:
    return status.show(options.dir)


def _load_image(options: argparse.Namespace) -> int:
    say = Steps()
    cluster = Cluster.load(options.dir)
    for name in options.image:
        images.load(cluster, name, say)
    return 0


def _forward(options: argparse.Namespace) -> int:
    cluster = Cluster.load(options.dir)
    host, port = forward.resolve(cluster, options.address)
    if options.close:
        closed = [item for item in forward.exposed(cluster) if (item.host, item.port) == (host, port)]
        for item in closed:
            forward.close(cluster, item.local_port)
        print(f"closed {len(closed)}")
        return 0
    print(f"127.0.0.1:{forward.reuse(cluster, host, port, options.port)}")
    return 0


def _shell(options: argparse.Namespace) -> int:
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    enter(Cluster.load(options.dir), tuple(command))
    return 0


def port(text: str) -> int:
    """A port of this machine; 0 is any free one."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port: name a number up to 65535, or 0 for a free one")
    return int(text)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="hotstart-cluster", description="A real Kubernetes on this machine.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--dir", help="the cluster's folder (HOTSTART_CLUSTER_DIR; by default build/cluster)")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    add = commands.add_parser("up", parents=[common], help="start the cluster, if it does not run")
    add.add_argument("--api-only", action="store_true", help="etcd and the API server alone")
    add.add_argument("--api-port", type=port, default=0, help="the API server's port on 127.0.0.1 (a free one)")
    add.add_argument("--s3-port", type=port, default=0, help="the object store's port on 127.0.0.1 (a free one)")
    add.set_defaults(run=_up)

    add = commands.add_parser("fetch", help="download or build the programs that `up` would, and start nothing")
    add.add_argument("--api-only", action="store_true", help="those of etcd and the API server alone")
    add.set_defaults(run=_fetch, dir=None)

    add = commands.add_parser("down", parents=[common], help="end the cluster and remove all that it made")
    add.set_defaults(run=_down)

    add = commands.add_parser("status", parents=[common], help="say what runs")
    add.set_defaults(run=_status)

    add = commands.add_parser("load-image", parents=[common], help="bring images into the cluster")
    add.add_argument("image", nargs="+", help="a name in buildah's store, or an archive file")
    add.set_defaults(run=_load_image)

    add = commands.add_parser("forward", parents=[common], help="reach an address of the cluster on 127.0.0.1")
    add.add_argument("address", help="NAMESPACE/SERVICE:PORT, or IP:PORT")
    add.add_argument("--port", type=port, default=0, help="the port on 127.0.0.1 (a free one)")
    add.add_argument("--close", action="store_true", help="end the forward instead")
    add.set_defaults(run=_forward)

    add = commands.add_parser("shell", parents=[common], help="a shell, or a command after --, inside the cluster")
    add.add_argument("command", nargs=argparse.REMAINDER)
    add.set_defaults(run=_shell)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    options.dir = state_dir(options.dir, os.environ, Path.cwd())
    try:
        result: int = options.run(options)
    except ClusterError as problem:
        print(problem, file=sys.stderr)
        return 1
    except PermissionError as problem:
        print(f"{problem}: this cluster was started by another user; run the command as that user.", file=sys.stderr)
        return 1
    except NotADirectoryError as problem:
        print(f"{problem}: name a folder with --dir (or HOTSTART_CACHE).", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return result


if __name__ == "__main__":
    sys.exit(main())
