"""Which programs the cluster is made of, at which versions, and from which Go packages they are built.

The pins themselves are the `go.mod` and `go.sum` files under `cluster/go/`; a test compares the versions with them.
"""

from __future__ import annotations

from dataclasses import dataclass

KUBERNETES_VERSION = "v1.35.4"
ETCD_VERSION = "v3.6.14"
HELM_VERSION = "v3.19.5"
COREDNS_VERSION = "v1.13.1"
PAUSE_VERSION = "v1"


@dataclass(frozen=True)
class Program:
    """One binary: its Go package, and how a copy found on the machine proves its version."""

    name: str
    package: str
    built_as: str
    version_argv: tuple[str, ...] = ()
    version_text: str = ""


@dataclass(frozen=True)
class Tool:
    """Programs that are built together, from one go.mod, into one folder of the cache."""

    name: str
    version: str
    programs: tuple[Program, ...]
    stamps: tuple[str, ...] = ()
    cluster_needs: bool = True


_VERSION_PACKAGE = "k8s.io/component-base/version"


def _kubernetes_program(name: str) -> Program:
    argv = ("version", "--client") if name == "kubectl" else ("--version",)
    return Program(name, f"k8s.io/kubernetes/cmd/{name}", name, argv, "v1.35.")


KUBERNETES = Tool(
    "kubernetes",
    KUBERNETES_VERSION,
    tuple(
        _kubernetes_program(name)
        for name in (
            "kube-apiserver",
            "kube-controller-manager",
            "kube-proxy",
            "kube-scheduler",
            "kubectl",
            "kubelet",
        )
    ),
    (
        f"{_VERSION_PACKAGE}.gitVersion={KUBERNETES_VERSION}",
        f"{_VERSION_PACKAGE}.gitMajor=1",
        f"{_VERSION_PACKAGE}.gitMinor=35",
        f"{_VERSION_PACKAGE}.gitTreeState=clean",
    ),
)
ETCD = Tool(
    "etcd",
    ETCD_VERSION,
    (Program("etcd", "go.etcd.io/etcd/server/v3", "server", ("--version",), "etcd Version: 3.6."),),
)
HELM = Tool(
    "helm",
    HELM_VERSION,
    (Program("helm", "helm.sh/helm/v3/cmd/helm", "helm", ("version", "--short"), "v3."),),
)
COREDNS = Tool(
    "coredns",
    COREDNS_VERSION,
    (Program("coredns", "github.com/coredns/coredns", "coredns", ("-version",), "CoreDNS-1."),),
)
PAUSE = Tool("pause", PAUSE_VERSION, (Program("pause", ".", "pause"),))

ALL: tuple[Tool, ...] = (ETCD, KUBERNETES, HELM, COREDNS, PAUSE)
API_ONLY: tuple[Tool, ...] = (ETCD, KUBERNETES)

GO_MINIMUM = (1, 25)


def wanted(api_only: bool) -> tuple[Tool, ...]:
    return API_ONLY if api_only else ALL


def build_argv(tool: Tool, go: str, output: str) -> tuple[str, ...]:
    """The one build of a tool: everything static, without paths of this machine in it."""
    linker = " ".join(("-s", "-w", *(f"-X {stamp}" for stamp in tool.stamps)))
    packages = tuple(program.package for program in tool.programs)
    return (go, "build", "-v", "-trimpath", "-mod=readonly", "-ldflags", linker, "-o", f"{output}/", *packages)
