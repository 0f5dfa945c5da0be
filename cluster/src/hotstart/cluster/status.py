"""What runs, for a person: where the cluster is reached, and each component with its memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hotstart.cluster import cgroups, forward, processes
from hotstart.cluster.cluster import Cluster, read
from hotstart.cluster.layout import Layout

NOT_RUNNING = 3


@dataclass(frozen=True)
class Seen:
    """One process inside the namespaces."""

    pid: int
    name: str
    resident_mib: float


def inside(init_pid: int) -> Iterator[Seen]:
    """Every process that lives in the process namespace of the init."""
    wanted = Path(f"/proc/{init_pid}/ns/pid").readlink()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if (entry / "ns/pid").readlink() != wanted:
                continue
            status = dict(line.split(":\t", 1) for line in (entry / "status").read_text().splitlines() if ":\t" in line)
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        module = [word.decode() for word in words[1:3] if word.startswith(b"hotstart.")]
        name = module[0] if module else status["Name"]
        yield Seen(int(entry.name), name, int(status.get("VmRSS", "0 kB").split()[0]) / 1024)


def lines(cluster: Cluster, seen: list[Seen], forwards: tuple[forward.Forwarded, ...], ready: bool) -> list[str]:
    """The text that `status` prints."""
    kind = "API server alone" if cluster.api_only else f"node {cluster.node_name}"
    text = [
        f"Kubernetes {cluster.kubernetes_version}, {kind}, {'ready' if ready else 'NOT READY'}",
        f"API server     {cluster.api_endpoint}",
    ]
    if cluster.s3:
        text.append(f"object store   {cluster.s3.endpoint} (from pods: {cluster.s3.endpoint_in_cluster})")
    if cluster.api_port not in {item.local_port for item in forwards}:
        text.append(
            "Ports of the machine were lost with a forwarder that ended: `hotstart-cluster up` opens them again."
        )
    text += [f"forward        127.0.0.1:{item.local_port} -> {item.host}:{item.port}" for item in forwards]
    text += [f"{item.resident_mib:8.0f} MiB  {item.name}" for item in sorted(seen, key=lambda one: -one.resident_mib)]
    text.append(f"{sum(item.resident_mib for item in seen):8.0f} MiB  in all (init {cluster.init_pid})")
    return text


def show(directory: Path) -> int:
    """Print the status; the exit status is 0 for a ready cluster and 3 where none runs."""
    layout = Layout(directory)
    cluster = read(layout)
    if cluster is None:
        if processes.read(layout.keeper_file):
            print(f"A cluster is starting in {layout.root}.")
        else:
            print(f"No cluster runs in {layout.root}.")
        if cgroups.present(layout.cgroup) and not processes.read(layout.keeper_file):
            print("Something is left of an earlier one: `hotstart-cluster down` removes it.")
        return NOT_RUNNING
    api = cluster.api()
    ready = api.ready() and (cluster.api_only or api.node_ready(cluster.node_name))
    print("\n".join(lines(cluster, list(inside(cluster.init_pid)), forward.exposed(cluster), ready)))
    return 0 if ready else 1
