"""Where everything of one cluster lives: outside, under its state folder; inside the namespaces, at fixed short paths.

Fixed paths inside keep command lines equal for every checkout, and unix sockets below their limit of 108 characters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

RUN_INSIDE = "/run/hotstart"
FORWARD_SOCKET = f"{RUN_INSIDE}/forward.sock"
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
KUBELET_INSIDE = "/var/lib/kubelet"
CONTAINERD_INSIDE = "/var/lib/containerd"
DATA_INSIDE = "/var/lib/hotstart"
CGROUP_PREFIX = "hotstart-"


@dataclass(frozen=True)
class NodeLayout:
    """The folders of one node: one set of namespaces, one containerd, one kubelet."""

    root: Path

    @property
    def init_file(self) -> Path:
        return self.root / "init.json"

    @property
    def resolv_conf(self) -> Path:
        return self.root / "resolv.conf"

    @property
    def cni(self) -> Path:
        return self.root / "cni"

    @property
    def containerd(self) -> Path:
        return self.root / "containerd"

    @property
    def kubelet(self) -> Path:
        return self.root / "kubelet"

    @property
    def data(self) -> Path:
        """What is /var/lib/hotstart on the node: the place for a node cache, on the disk."""
        return self.root / "hotstart"

    @property
    def pod_logs(self) -> Path:
        return self.root / "pods"

    @property
    def sysctls(self) -> Path:
        return self.root / "sysctls"


@dataclass(frozen=True)
class Layout:
    """The state folder of one cluster."""

    root: Path

    @property
    def identity(self) -> str:
        """Eight characters that tell this state folder from any other on the machine."""
        return hashlib.sha256(str(self.root).encode()).hexdigest()[:8]

    @property
    def cgroup(self) -> str:
        return f"{CGROUP_PREFIX}{self.identity}"

    @property
    def lock(self) -> Path:
        return self.root / ".lock"

    @property
    def keeper_file(self) -> Path:
        return self.root / "keeper.json"

    @property
    def plan_file(self) -> Path:
        return self.root / "plan.json"

    @property
    def cluster_file(self) -> Path:
        return self.root / "cluster.json"

    @property
    def env_file(self) -> Path:
        return self.root / "env"

    @property
    def kubeconfig(self) -> Path:
        return self.root / "kubeconfig"

    @property
    def kubeconfig_inside(self) -> Path:
        return self.root / "config" / "admin.kubeconfig"

    @property
    def pki(self) -> Path:
        return self.root / "pki"

    @property
    def config(self) -> Path:
        return self.root / "config"

    @property
    def logs(self) -> Path:
        return self.root / "log"

    @property
    def bin(self) -> Path:
        return self.root / "bin"

    @property
    def etcd(self) -> Path:
        return self.root / "etcd"

    @property
    def s3(self) -> Path:
        return self.root / "s3"

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def loaded_images(self) -> Path:
        return self.root / "images.json"

    def node(self, index: int) -> NodeLayout:
        return NodeLayout(self.root / "nodes" / str(index))

    def owned(self) -> tuple[Path, ...]:
        """All that `down` removes: what the cluster made, and nothing else that stands in the folder."""
        return (
            self.cluster_file,
            self.env_file,
            self.kubeconfig,
            self.keeper_file,
            self.plan_file,
            self.loaded_images,
            self.pki,
            self.config,
            self.logs,
            self.bin,
            self.etcd,
            self.s3,
            self.images,
            self.root / "nodes",
            self.lock,
        )


def state_dir(named: str | None, environ: Mapping[str, str], current: Path) -> Path:
    """The state folder: the flag, else HOTSTART_CLUSTER_DIR, else `build/cluster` here."""
    return (current / (named or environ.get("HOTSTART_CLUSTER_DIR") or "build/cluster")).resolve()
