"""The text of every settings file that a component reads, as pure functions of the plan and the layout."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotstart.cluster.layout import CONTAINERD_INSIDE, CONTAINERD_SOCKET, KUBELET_INSIDE, Layout
from hotstart.cluster.plan import (
    CLUSTER_DOMAIN,
    CONTROL,
    DNS_PORT,
    KUBELET_PORT,
    MODELS_BUCKET,
    PAUSE_IMAGE,
    POD_RANGE,
    NodePlan,
)


@dataclass(frozen=True)
class S3Keys:
    """The two identities of the object store: one for operators, one that may only read the checkpoints."""

    admin_access_key: str
    admin_secret_key: str
    reader_access_key: str
    reader_secret_key: str


def as_json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2) + "\n"


def kubelet(layout: Layout, node: NodePlan) -> str:
    pki = layout.pki
    return as_json(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": node.address,
            "port": KUBELET_PORT,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": f"{pki}/ca.crt"},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": f"{pki}/kubelet-{node.index}-server.crt",
            "tlsPrivateKeyFile": f"{pki}/kubelet-{node.index}-server.key",
            "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
            "volumePluginDir": f"{KUBELET_INSIDE}/volumeplugins",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{layout.cgroup}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "cpuCFSQuota": True,
            "clusterDomain": CLUSTER_DOMAIN,
            "clusterDNS": [CONTROL.address],
            "resolvConf": "/etc/resolv.conf",
            "makeIPTablesUtilChains": False,
            "oomScoreAdj": 0,
            "maxPods": 200,
            # The disk of a person's machine may be nearly full: nothing is evicted and no image is removed for that.
            "evictionHard": {"imagefs.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%"},
            "imageGCHighThresholdPercent": 100,
            "localStorageCapacityIsolation": True,
            "nodeStatusUpdateFrequency": "5s",
        }
    )


def proxy(layout: Layout, node: NodePlan) -> str:
    return as_json(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clusterCIDR": POD_RANGE,
            "hostnameOverride": node.name,
            "clientConnection": {"kubeconfig": f"{layout.config}/proxy.kubeconfig"},
            "conntrack": {
                "maxPerCore": 0,
                "min": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
            },
            "healthzBindAddress": "127.0.0.1:10256",
            "metricsBindAddress": "127.0.0.1:10249",
            "nftables": {"minSyncPeriod": "100ms", "syncPeriod": "30s"},
            "oomScoreAdj": 0,
        }
    )


def containerd(node_cni: Path, plugins: str, lower_oom_score: bool) -> str:
    """containerd's settings; `lower_oom_score` is whether this machine lets a process lower its own OOM score."""
    restrict = "false" if lower_oom_score else "true"
    return f"""version = 2
root = "{CONTAINERD_INSIDE}"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{CONTAINERD_SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = {restrict}
  disable_apparmor = true
  tolerate_missing_hugetlb_controller = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{node_cni}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"""


def cni(node: NodePlan) -> str:
    """Pods are routed, not bridged: so a Service works between two pods of one node without br_netfilter."""
    addresses = {
        "type": "host-local",
        "dataDir": "/run/hotstart/addresses",
        "ranges": [[{"subnet": node.pod_range, "rangeStart": _tenth(node), "gateway": node.address}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    return as_json(
        {
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [
                {"type": "ptp", "ipam": addresses, "ipMasq": False},
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        }
    )


def _tenth(node: NodePlan) -> str:
    return node.address.rsplit(".", 1)[0] + ".10"


def corefile(layout: Layout) -> str:
    """The cluster's own names; all others do not exist, since nothing outside the namespaces can be reached."""
    return f"""{CLUSTER_DOMAIN}:{DNS_PORT} in-addr.arpa:{DNS_PORT} {{
    bind {CONTROL.address}
    errors
    kubernetes {CLUSTER_DOMAIN} in-addr.arpa {{
        kubeconfig {layout.config}/dns.kubeconfig
        ttl 5
    }}
}}
.:{DNS_PORT} {{
    bind {CONTROL.address}
    errors
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
"""


def resolv_conf() -> str:
    """For everything inside the namespaces; no name outside the cluster can be reached from there."""
    search = f"svc.{CLUSTER_DOMAIN} {CLUSTER_DOMAIN}"
    return f"nameserver {CONTROL.address}\nsearch {search}\noptions ndots:5\n"


def object_store(keys: S3Keys) -> str:
    reads = [f"{action}:{MODELS_BUCKET}" for action in ("Read", "List")]
    return as_json(
        {
            "identities": [
                {
                    "name": "admin",
                    "credentials": [{"accessKey": keys.admin_access_key, "secretKey": keys.admin_secret_key}],
                    "actions": ["Admin", "Read", "Write", "List", "Tagging"],
                },
                {
                    "name": "models-reader",
                    "credentials": [{"accessKey": keys.reader_access_key, "secretKey": keys.reader_secret_key}],
                    "actions": reads,
                },
            ]
        }
    )


def kubeconfig(server: str, authority: bytes, certificate: bytes, key: bytes) -> str:
    """A kubeconfig that stands alone: certificates are inside it, so that it can be copied."""

    def data(pem: bytes) -> str:
        return base64.b64encode(pem).decode()

    return as_json(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "hotstart", "cluster": {"server": server, "certificate-authority-data": data(authority)}}
            ],
            "users": [
                {"name": "user", "user": {"client-certificate-data": data(certificate), "client-key-data": data(key)}}
            ],
            "contexts": [{"name": "hotstart", "context": {"cluster": "hotstart", "user": "user"}}],
            "current-context": "hotstart",
        }
    )
