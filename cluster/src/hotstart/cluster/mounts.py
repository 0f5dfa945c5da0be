"""What process 1 mounts inside its own mount namespace, so that nothing that runs in it writes on the machine.

Programs with fixed places (containerd's shims in /run, the kubelet's plugins in /var/lib, pod logs in /var/log) get
these places empty, on tmpfs or from the state folder. The global sysctls that the kubelet sets are covered by plain
files: it reads there what it wants, and the machine's own stay as they are.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from hotstart.cluster.layout import CONTAINERD_INSIDE, DATA_INSIDE, KUBELET_INSIDE, RUN_INSIDE, NodeLayout

KUBELET_SYSCTLS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
OWN_IN_VAR_LIB = ("kubelet", "containerd", "cni", "hotstart")


def mount(*arguments: str | Path) -> None:
    subprocess.run(("mount", *map(str, arguments)), check=True)


def _tmpfs(place: str) -> None:
    mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", place)


def bind(source: Path, place: Path) -> None:
    """Show a folder or a file of the machine at another place, with all that is mounted below it."""
    if source.is_dir():
        place.mkdir(parents=True, exist_ok=True)
    elif not place.exists():
        place.touch()
    mount("--rbind", source, place)


def cover_sysctls(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in KUBELET_SYSCTLS.items():
        place = Path("/proc/sys") / name
        if place.exists():
            cover = folder / name.replace("/", ".")
            cover.write_text(f"{value}\n")
            mount("--bind", cover, place)


def fresh_run() -> None:
    _tmpfs("/run")
    for name in (RUN_INSIDE, "/run/lock"):
        Path(name).mkdir()


def fresh_var_lib() -> None:
    """/var/lib as it was, but on a tmpfs that can take the cluster's own folders without a trace."""
    before = Path(RUN_INSIDE) / "var-lib"
    bind(Path("/var/lib"), before)
    _tmpfs("/var/lib")
    for entry in sorted(before.iterdir()):
        place = Path("/var/lib") / entry.name
        if entry.is_symlink():
            place.symlink_to(entry.readlink())
        elif entry.name not in OWN_IN_VAR_LIB:
            bind(entry, place)


def enter_api() -> None:
    """What the API server alone needs: its own processes, and a place for sockets."""
    mount("-t", "proc", "proc", "/proc")
    fresh_run()


def enter_node(node: NodeLayout, resolv_conf: str) -> None:
    """All that containerd and a kubelet need."""
    mount("-t", "proc", "proc", "/proc")
    # Pods' mounts must reach the kubelet and back, inside this namespace alone.
    mount("--make-rshared", "/")
    cover_sysctls(node.sysctls)
    fresh_run()
    fresh_var_lib()
    _tmpfs("/var/log")
    Path("/var/log/containers").mkdir()
    for source, place in (
        (node.kubelet, KUBELET_INSIDE),
        (node.containerd, CONTAINERD_INSIDE),
        (node.data, DATA_INSIDE),
        (node.pod_logs, "/var/log/pods"),
    ):
        source.mkdir(parents=True, exist_ok=True)
        bind(source, Path(place))
    node.resolv_conf.write_text(resolv_conf)
    standing = Path("/etc/resolv.conf")
    if standing.is_symlink() and not standing.exists():
        standing.resolve().parent.mkdir(parents=True, exist_ok=True)
        standing.resolve().touch()
    if standing.exists():
        mount("--bind", node.resolv_conf, standing.resolve())
