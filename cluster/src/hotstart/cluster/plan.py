"""The addresses and names of a cluster: pure facts from which command lines, settings and certificates follow.

A node is one set of namespaces with an address and a range of pod addresses of its own. Only `CONTROL` is started.
Nothing of this is seen outside the namespaces, so that every cluster has the same addresses.
"""

from __future__ import annotations

from dataclasses import dataclass

CLUSTER_DOMAIN = "cluster.local"
SERVICE_RANGE = "10.96.0.0/16"
API_SERVICE_ADDRESS = "10.96.0.1"
POD_RANGE = "10.244.0.0/16"
API_PORT = 6443
S3_PORT = 8333
DNS_PORT = 53
KUBELET_PORT = 10250
ETCD_PORT = 2379
LINK = "hs0"
PAUSE_IMAGE = "hotstart.dev/pause:v1"
MODELS_BUCKET = "models"


@dataclass(frozen=True)
class NodePlan:
    """One node: its name, its address and the range of its pods."""

    index: int

    @property
    def name(self) -> str:
        return f"node-{self.index}"

    @property
    def address(self) -> str:
        return f"10.244.{self.index}.1"

    @property
    def pod_range(self) -> str:
        return f"10.244.{self.index}.0/24"


CONTROL = NodePlan(0)


def api_endpoint() -> str:
    return f"https://{CONTROL.address}:{API_PORT}"


def s3_endpoint() -> str:
    return f"http://{CONTROL.address}:{S3_PORT}"
