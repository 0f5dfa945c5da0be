"""Make an address of the cluster reachable on a loopback port of the machine, for as long as the cluster lives."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from typing import Any, Protocol

from hotstart.cluster import waiting
from hotstart.cluster.cluster import Cluster
from hotstart.cluster.errors import ClusterError
from hotstart.cluster.layout import FORWARD_SOCKET


class HasInit(Protocol):
    """Anything that knows the init of a running cluster."""

    @property
    def init_pid(self) -> int: ...


@dataclass(frozen=True)
class Forwarded:
    host: str
    port: int
    local_port: int


def _place(cluster: HasInit) -> str:
    """The forwarder's socket, as seen from outside: through the init's root folder."""
    return f"/proc/{cluster.init_pid}/root{FORWARD_SOCKET}"


def _ask(cluster: HasInit, request: dict[str, Any], handed: tuple[int, ...] = ()) -> dict[str, Any]:
    parts = []
    try:
        with socket.socket(socket.AF_UNIX) as asker:
            asker.settimeout(10)
            asker.connect(_place(cluster))
            socket.send_fds(asker, [json.dumps(request).encode()], list(handed))
            while part := asker.recv(65536):
                parts.append(part)
        answer: dict[str, Any] = json.loads(b"".join(parts))
    except (OSError, ValueError) as problem:
        raise ClusterError(
            f"The cluster's forwarder does not answer ({problem}): run `hotstart-cluster up`, "
            "which opens lost ports again."
        ) from problem
    if "error" in answer:
        raise ClusterError(f"The cluster's forwarder refused: {answer['error']}")
    return answer


def expose(cluster: HasInit, host: str, port: int, local_port: int = 0) -> int:
    """Carry 127.0.0.1:`local_port` (0: a free one) to `host:port` in the cluster; returns the local port."""
    with socket.socket(socket.AF_INET) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", local_port))
        except OSError as problem:
            raise ClusterError(
                f"Port {local_port} of 127.0.0.1 is taken: end what listens there, or name another port."
            ) from problem
        listening.listen(1024)
        request = {"operation": "open", "host": host, "port": port}
        return int(_ask(cluster, request, (listening.fileno(),))["local_port"])


def close(cluster: HasInit, local_port: int) -> bool:
    """End a forward; False if there was none on that port."""
    return bool(_ask(cluster, {"operation": "close", "local_port": local_port})["closed"])


def exposed(cluster: HasInit) -> tuple[Forwarded, ...]:
    """All forwards of the cluster."""
    return tuple(Forwarded(*row) for row in _ask(cluster, {"operation": "list"})["forwards"])


def answers(cluster: HasInit) -> bool:
    """Whether the forwarder takes requests; one that ended is away for a second or two."""
    return waiting.socket_open(_place(cluster))


def reuse(cluster: HasInit, host: str, port: int, local_port: int = 0) -> int:
    """The local port of the address: that of a forward that stands, else a new one."""
    for item in exposed(cluster):
        if (item.host, item.port) == (host, port) and local_port in (0, item.local_port):
            return item.local_port
    return expose(cluster, host, port, local_port)


def resolve(cluster: Cluster, address: str) -> tuple[str, int]:
    """Host and port of `NAMESPACE/SERVICE:PORT` (a number or a port's name) or of `IP:PORT`."""
    place, colon, port = address.rpartition(":")
    if not colon:
        raise ClusterError(f"{address} has no port: write NAMESPACE/SERVICE:PORT or IP:PORT.")
    namespace, slash, name = place.partition("/")
    if not slash:
        if not port.isdecimal() or not 0 < int(port) <= 65535:
            raise ClusterError(f"{address} has no number of a port: write NAMESPACE/SERVICE:PORT or IP:PORT.")
        return place, int(port)
    service = cluster.api().get(f"/api/v1/namespaces/{namespace}/services/{name}")
    if service is None:
        raise ClusterError(f"There is no Service {name} in namespace {namespace}: see `kubectl get services -A`.")
    if service["spec"].get("clusterIP", "None") == "None":
        raise ClusterError(f"Service {namespace}/{name} has no address of its own: name a pod's IP:PORT instead.")
    for item in service["spec"]["ports"]:
        if port in (str(item["port"]), item.get("name")):
            return service["spec"]["clusterIP"], item["port"]
    raise ClusterError(f"Service {namespace}/{name} has no port {port}.")
