"""A shell, or one command, inside the namespaces of a node: sees pods' addresses, cluster names and containerd."""

from __future__ import annotations

import os
from typing import NoReturn

from hotstart.cluster.cluster import Cluster
from hotstart.cluster.layout import CONTAINERD_SOCKET


def argv(init_pid: int, directory: str, command: tuple[str, ...], rootless: bool) -> tuple[str, ...]:
    """Enter the namespaces of the init, go back to the folder the caller stood in, and run the command.

    Without root (`rootless`) the user namespace too: only there the caller may enter the others.
    """
    # nsenter leaves the caller's folder behind, which belongs to the mounts outside.
    return (
        "nsenter",
        f"--target={init_pid}",
        *(("--user", "--preserve-credentials") if rootless else ()),
        "--mount",
        "--pid",
        "--net",
        "--ipc",
        "--uts",
        "--",
        "/bin/sh",
        "-c",
        'cd "$1" 2>/dev/null || cd /; shift; exec "$@"',
        "sh",
        directory,
        *command,
    )


def environment(cluster: Cluster, current: dict[str, str]) -> dict[str, str]:
    values = {
        **current,
        **cluster.environment(),
        "KUBECONFIG": cluster.kubeconfig_in_cluster,
        "PATH": os.pathsep.join((cluster.bin, current.get("PATH", ""), "/usr/sbin", "/sbin")),
        "CONTAINERD_ADDRESS": CONTAINERD_SOCKET,
        "CONTAINERD_NAMESPACE": "k8s.io",
    }
    if cluster.s3:
        values["HOTSTART_S3_ENDPOINT"] = cluster.s3.endpoint_in_cluster
    return values


def enter(cluster: Cluster, command: tuple[str, ...]) -> NoReturn:
    """Become the command (by default the person's shell); its exit status is ours."""
    wanted = command or (os.environ.get("SHELL", "/bin/sh"),)
    line = argv(cluster.init_pid, os.getcwd(), wanted, os.geteuid() != 0)  # noqa: PTH109
    os.execvpe(line[0], line, environment(cluster, dict(os.environ)))
