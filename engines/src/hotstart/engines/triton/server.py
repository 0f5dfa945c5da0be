"""The command line of tritonserver, as a pure function, and where its files are found.

Triton's own repository API loads code, so it and the other APIs that change the server are restricted to the holder of
the pod's key, which the pod agent makes at random.

Tensor parallel: one server a rank under mpirun. All ranks load the engine together as they start, those above 0 never
get past it, and rank 0 listens once it is loaded; so such a server is started when its repository has been written, and
an empty one cannot be had.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from hotstart.engines.triton.trtllm_config import TRTLLM_MODEL
from hotstart.exchange.names import PORT_TRITON_GRPC, PORT_TRITON_HTTP, PORT_TRITON_METRICS

KEY_HEADER = "hotstart-repository-key"
GRPC_HEADER_PREFIX = "triton-grpc-protocol-"  # how Triton names a restricted protocol's header in gRPC metadata
RESTRICTED_APIS = ("model-repository", "model-config", "shared-memory", "trace", "logging")
KEY_FILE = "repository-key"
CONTAINER_ROOT = Path("/opt/tritonserver")
SHARED_MEMORY = Path("/dev/shm")
SHARED_MEMORY_PREFIX = "hotstart"
LONGEST_GENERATION_SECONDS = 20  # Triton cuts streams that still run so long after SIGTERM


@dataclass(frozen=True)
class Installation:
    """Where tritonserver lies. ``library_path`` holds libpython, where that is in no standard place; or is empty.

    ``container``: NVIDIA's own, which has TensorRT-LLM and histograms of latencies.
    """

    root: Path
    binaries: Path
    library_path: str = ""
    container: bool = False
    backends: Path | None = None  # other than the installation's own: tests

    @property
    def backend_directory(self) -> Path:
        return self.backends or self.root / "backends"


@dataclass(frozen=True)
class ServerPlan:
    """One server: its model repository, ports, and the key of its restricted APIs ('' restricts nothing: tests).

    ``shared_memory``: how the names of its Python backend's regions in /dev/shm begin.
    """

    repository: Path
    key: str = ""
    address: str = "0.0.0.0"
    http_port: int = PORT_TRITON_HTTP
    grpc_port: int = PORT_TRITON_GRPC
    metrics_port: int = PORT_TRITON_METRICS
    exit_timeout_seconds: int = LONGEST_GENERATION_SECONDS
    load: tuple[str, ...] = ()
    ranks: int = 1
    shared_memory: str = SHARED_MEMORY_PREFIX


def find_installation(site_packages: Path) -> Installation | None:
    """The installation of nvidia-pytriton in ``site_packages``, or None."""
    root = site_packages / "pytriton" / "tritonserver"
    if not (root / "bin" / "tritonserver").exists():
        return None
    return Installation(root, Path(sys.executable).parent)


def find_container(root: Path = CONTAINER_ROOT) -> Installation | None:
    """The server of NVIDIA's container, or None. Our programs' environment leads its Python backend to our packages."""
    if not (root / "backends" / "tensorrtllm").is_dir():
        return None
    return Installation(root, Path(sys.executable).parent, container=True)


def make_command(plan: ServerPlan, installation: Installation) -> tuple[str, ...]:
    """What to execute: the server, or mpirun with one server a rank."""
    if plan.ranks == 1:
        return make_arguments(plan, installation)
    leader = make_arguments(replace(plan, load=(TRTLLM_MODEL, *plan.load)), installation)
    servers = (leader, *(make_worker_arguments(plan, installation, rank) for rank in range(1, plan.ranks)))
    parts = [(":", "-n", "1", *server) for server in servers]
    words = [word for part in parts for word in part]
    return ("mpirun", "--allow-run-as-root", *words[1:])


def make_arguments(plan: ServerPlan, installation: Installation) -> tuple[str, ...]:
    """The whole argv of tritonserver. It starts with no model but those in ``plan.load``."""
    restricted = ",".join(RESTRICTED_APIS)
    restrictions = (
        (
            f"--http-restricted-api={restricted}:{KEY_HEADER}={plan.key}",
            f"--grpc-restricted-protocol={restricted}:{KEY_HEADER}={plan.key}",
        )
        if plan.key
        else ()
    )
    return (
        *make_common_arguments(plan, installation, rank=0),
        *(f"--load-model={name}" for name in plan.load),
        f"--http-address={plan.address}",
        f"--http-port={plan.http_port}",
        f"--grpc-address={plan.address}",
        f"--grpc-port={plan.grpc_port}",
        f"--metrics-address={plan.address}",
        f"--metrics-port={plan.metrics_port}",
        "--allow-gpu-metrics=false",
        "--allow-cpu-metrics=false",
        *(("--metrics-config=histogram_latencies=true",) if installation.container else ()),
        f"--exit-timeout-secs={plan.exit_timeout_seconds}",
        *restrictions,
    )


def make_worker_arguments(plan: ServerPlan, installation: Installation, rank: int) -> tuple[str, ...]:
    """The server of a rank above 0: it holds its part of the engine and listens to nobody."""
    return (
        *make_common_arguments(plan, installation, rank=rank),
        f"--load-model={TRTLLM_MODEL}",
        "--allow-http=false",
        "--allow-grpc=false",
        "--allow-metrics=false",
    )


def make_common_arguments(plan: ServerPlan, installation: Installation, *, rank: int) -> tuple[str, ...]:
    """What all servers of a pod have. Each rank's Python backend names its shared memory apart."""
    return (
        str(installation.root / "bin" / "tritonserver"),
        f"--model-repository={plan.repository}",
        f"--backend-directory={installation.backend_directory}",
        f"--cache-directory={installation.root / 'caches'}",
        f"--backend-config=python,shm-region-prefix-name={plan.shared_memory}{rank}_",
        "--model-control-mode=explicit",
        "--disable-auto-complete-config",
    )


def clear_shared_memory(prefix: str, folder: Path = SHARED_MEMORY) -> None:
    """Removes what the Python backend of a server with that prefix has left: one that is killed removes nothing, and in
    a pod the memory outlives the container."""
    for region in folder.glob(f"{prefix}[0-9]*_*"):
        region.unlink(missing_ok=True)


def make_environment(installation: Installation, inherited: dict[str, str]) -> dict[str, str]:
    """The server's environment: PATH leads the Python backend's stub to the interpreter whose packages it shall use."""
    environment = {**inherited, "PATH": f"{installation.binaries}:{inherited.get('PATH', '/usr/bin:/bin')}"}
    libraries = ":".join(part for part in (installation.library_path, inherited.get("LD_LIBRARY_PATH", "")) if part)
    return {**environment, "LD_LIBRARY_PATH": libraries} if libraries else environment
