"""The command line of every component: what is started, as pure functions of the plan and the layout."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hotstart.cluster import private_tmp
from hotstart.cluster.layout import CONTAINERD_SOCKET, KUBELET_INSIDE, Layout
from hotstart.cluster.plan import (
    API_PORT,
    CLUSTER_DOMAIN,
    CONTROL,
    ETCD_PORT,
    POD_RANGE,
    S3_PORT,
    SERVICE_RANGE,
    NodePlan,
)


@dataclass(frozen=True)
class Component:
    """One program of the cluster: its log is `log/NAME.log`."""

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


def etcd(layout: Layout, programs: Mapping[str, Path]) -> Component:
    here = f"http://127.0.0.1:{ETCD_PORT}"
    return Component(
        "etcd",
        (
            str(programs["etcd"]),
            "--name=control",
            f"--data-dir={layout.etcd}",
            f"--listen-client-urls={here}",
            f"--advertise-client-urls={here}",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--unsafe-no-fsync",
            "--log-level=warn",
        ),
    )


def apiserver(layout: Layout, programs: Mapping[str, Path], api_only: bool) -> Component:
    pki = layout.pki
    admission = (
        ("--disable-admission-plugins=ServiceAccount",) if api_only else ("--enable-admission-plugins=NodeRestriction",)
    )
    return Component(
        "kube-apiserver",
        (
            str(programs["kube-apiserver"]),
            f"--advertise-address={CONTROL.address}",
            "--bind-address=0.0.0.0",
            f"--secure-port={API_PORT}",
            f"--etcd-servers=http://127.0.0.1:{ETCD_PORT}",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            "--allow-privileged=true",
            "--authorization-mode=Node,RBAC",
            *admission,
            f"--client-ca-file={pki}/ca.crt",
            f"--tls-cert-file={pki}/apiserver.crt",
            f"--tls-private-key-file={pki}/apiserver.key",
            f"--service-account-issuer=https://kubernetes.default.svc.{CLUSTER_DOMAIN}",
            f"--service-account-key-file={pki}/service-account.pub",
            f"--service-account-signing-key-file={pki}/service-account.key",
            f"--kubelet-client-certificate={pki}/apiserver-kubelet-client.crt",
            f"--kubelet-client-key={pki}/apiserver-kubelet-client.key",
            f"--kubelet-certificate-authority={pki}/ca.crt",
            "--kubelet-preferred-address-types=InternalIP",
            f"--requestheader-client-ca-file={pki}/front-proxy-ca.crt",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={pki}/front-proxy.crt",
            f"--proxy-client-key-file={pki}/front-proxy.key",
            "--profiling=false",
        ),
    )


def controller_manager(layout: Layout, programs: Mapping[str, Path]) -> Component:
    pki, kubeconfig = layout.pki, layout.config / "controller-manager.kubeconfig"
    return Component(
        "kube-controller-manager",
        (
            str(programs["kube-controller-manager"]),
            f"--kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            "--bind-address=127.0.0.1",
            "--leader-elect=false",
            "--use-service-account-credentials=false",
            f"--service-account-private-key-file={pki}/service-account.key",
            f"--root-ca-file={pki}/ca.crt",
            f"--cluster-signing-cert-file={pki}/ca.crt",
            f"--cluster-signing-key-file={pki}/ca.key",
            f"--cluster-cidr={POD_RANGE}",
            "--allocate-node-cidrs=false",
            "--pvclaimbinder-sync-period=1s",
            "--profiling=false",
        ),
    )


def scheduler(layout: Layout, programs: Mapping[str, Path]) -> Component:
    kubeconfig = layout.config / "scheduler.kubeconfig"
    return Component(
        "kube-scheduler",
        (
            str(programs["kube-scheduler"]),
            f"--kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            "--bind-address=127.0.0.1",
            "--leader-elect=false",
            "--profiling=false",
        ),
    )


def containerd(layout: Layout, node: NodePlan) -> Component:
    return Component("containerd", ("containerd", f"--config={layout.config}/containerd-{node.index}.toml"))


def kubelet(layout: Layout, node: NodePlan, programs: Mapping[str, Path]) -> Component:
    return Component(
        "kubelet",
        (
            str(programs["kubelet"]),
            f"--config={layout.config}/kubelet-{node.index}.json",
            f"--kubeconfig={layout.config}/kubelet-{node.index}.kubeconfig",
            f"--root-dir={KUBELET_INSIDE}",
            f"--hostname-override={node.name}",
            f"--node-ip={node.address}",
            "--node-labels=hotstart.dev/cluster=embedded",
        ),
    )


def proxy(layout: Layout, node: NodePlan, programs: Mapping[str, Path]) -> Component:
    return Component("kube-proxy", (str(programs["kube-proxy"]), f"--config={layout.config}/proxy-{node.index}.json"))


def dns(layout: Layout, programs: Mapping[str, Path]) -> Component:
    return Component("coredns", (str(programs["coredns"]), "-conf", f"{layout.config}/Corefile"))


def forwarder(python_path: str) -> Component:
    return Component("forwarder", (sys.executable, "-m", "hotstart.cluster.forwarder"), {"PYTHONPATH": python_path})


def object_store(layout: Layout, weed: str, python_path: str) -> Component:
    """Everything but S3 itself listens on loopback: the filer and the volumes know no credentials."""
    return Component(
        "s3",
        (
            *private_tmp.COMMAND,
            weed,
            "-logtostderr=true",
            "server",
            f"-dir={layout.s3}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-master.volumeSizeLimitMB=1024",
            "-master.telemetry=false",
            "-volume.max=400",
            "-volume.minFreeSpace=1",
            "-filer=true",
            "-s3=true",
            f"-s3.port={S3_PORT}",
            "-s3.ip.bind=0.0.0.0",
            f"-s3.config={layout.config}/s3.json",
            "-s3.concurrentUploadLimitMB=64",
        ),
        {"GOGC": "50", "GOMEMLIMIT": "256MiB", "PYTHONPATH": python_path},
    )


def control_components(layout: Layout, programs: Mapping[str, Path]) -> tuple[Component, ...]:
    """What needs the API server and runs once in a cluster."""
    return (controller_manager(layout, programs), scheduler(layout, programs), dns(layout, programs))


def node_components(layout: Layout, node: NodePlan, programs: Mapping[str, Path]) -> tuple[Component, ...]:
    """What needs the API server and runs on every node."""
    return (kubelet(layout, node, programs), proxy(layout, node, programs))


def ctr(*arguments: str) -> tuple[str, ...]:
    """containerd's own client, in the namespace that the kubelet's pods live in."""
    return ("ctr", f"--address={CONTAINERD_SOCKET}", "--namespace=k8s.io", *arguments)
