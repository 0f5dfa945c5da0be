"""Resident memory of each program of the demo as it runs, and of the whole demo. Needs the cluster of `make demo`.

RSS is the sum over a container's processes (goals: operator 150 MB, router 100, pod agent 60; the whole demo 6 GiB,
counted as PSS over all processes in the cluster's namespaces, so that shared pages count once).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import record
from hotstart.cluster.cluster import Cluster
from hotstart.cluster.errors import ClusterError
from hotstart.demo import stage
from hotstart.demo.kube import Kube

GOALS_MB = {"operator": 150, "router": 100, "agent": 60}
SAMPLES = 3
SAMPLE_SECONDS = 2.0


def status_kb(process: Path, file: str, field: str) -> int:
    """One figure in kB of a process; 0 for one that has ended meanwhile."""
    try:
        lines = (process / file).read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(field)), 0)


def processes_of(container_id: str) -> list[Path]:
    """The processes of a container, by the cgroup that is named after it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if container_id in (process / "cgroup").read_text():
                found.append(process)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def container_megabytes(pod: dict[str, Any], name: str) -> float:
    """RSS of a container of a pod in MB."""
    statuses = [*pod["status"].get("containerStatuses", ()), *pod["status"].get("initContainerStatuses", ())]
    container = next(status["containerID"].split("//")[1] for status in statuses if status["name"] == name)
    return sum(status_kb(process, "status", "VmRSS:") for process in processes_of(container)) * 1024 / 1e6


def all_gibibytes(cluster: Cluster) -> float:
    """PSS of every process in the cluster's PID namespace or below it, in GiB."""
    tree, total = {str(cluster.init_pid)}, 0
    processes = sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name))
    parents = {path.name: str(status_kb(path, "status", "PPid:")) for path in processes}
    grown = True
    while grown:
        more = {name for name, parent in parents.items() if parent in tree} - tree
        tree, grown = tree | more, bool(more)
    for name in tree:
        total += status_kb(Path("/proc") / name, "smaps_rollup", "Pss:")
    return total / 2**20


def sample(kube: Kube) -> dict[str, float]:
    """RSS in MB of the largest container of each kind."""
    figures = {}
    for component in ("operator", "router"):
        pods = kube.items("pods", stage.SYSTEM, labels=f"app.kubernetes.io/component={component}")
        figures[component] = max(container_megabytes(pod, component) for pod in pods)
    pods = kube.items("pods", stage.NAMESPACE, labels="app.kubernetes.io/component=serving")
    for container in ("agent", "triton"):
        figures[container] = max(container_megabytes(pod, container) for pod in pods)
    return figures


def main() -> int:
    """Measures and records."""
    try:
        cluster = Cluster.load(stage.ROOT / "build" / "cluster")
    except ClusterError as problem:
        print(f"{problem} (`make demo` does, and leaves it up)", file=sys.stderr)
        return 1
    kube = Kube()
    kube.use(cluster)
    samples, totals = [], []
    for _ in range(SAMPLES):
        samples.append(sample(kube))
        totals.append(all_gibibytes(cluster))
        time.sleep(SAMPLE_SECONDS)
    figures = {f"{name}_rss_mb": round(record.median([sample[name] for sample in samples]), 1) for name in samples[0]}
    goals = {f"{name}_rss_mb": record.at_most(goal) for name, goal in GOALS_MB.items()}
    goals["demo_pss_gib"] = record.at_most(6)
    record.write("memory", {**figures, "demo_pss_gib": round(record.median(totals), 2), "samples": SAMPLES}, goals)
    return 0


if __name__ == "__main__":
    sys.exit(main())
