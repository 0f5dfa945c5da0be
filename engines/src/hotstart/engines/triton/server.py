"""The command line of tritonserver, as a pure function, and where its files are found.

Triton's own repository API loads code, so it and the other APIs that change the server are restricted to the holder of
the pod's key, which the pod agent makes at random.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from hotstart.exchange.names import PORT_TRITON_GRPC, PORT_TRITON_HTTP, PORT_TRITON_METRICS

KEY_HEADER = "hotstart-repository-key"
GRPC_HEADER_PREFIX = "triton-grpc-protocol-"  # how Triton names a restricted protocol's header in gRPC metadata
RESTRICTED_APIS = ("model-repository", "model-config", "shared-memory", "trace", "logging")
KEY_FILE = "repository-key"
LONGEST_GENERATION_SECONDS = 20  # Triton cuts streams that still run so long after SIGTERM


@dataclass(frozen=True)
class Installation:
    """Where tritonserver lies. ``library_path`` holds libpython, where that is in no standard place; or is empty."""

    root: Path
    binaries: Path
    library_path: str = ""


@dataclass(frozen=True)
class ServerPlan:
    """One server: its model repository, ports, and the key of its restricted APIs ('' restricts nothing: tests)."""

    repository: Path
    key: str = ""
    address: str = "0.0.0.0"
    http_port: int = PORT_TRITON_HTTP
    grpc_port: int = PORT_TRITON_GRPC
    metrics_port: int = PORT_TRITON_METRICS
    exit_timeout_seconds: int = LONGEST_GENERATION_SECONDS
    load: tuple[str, ...] = ()


def find_installation(site_packages: Path) -> Installation | None:
    """The installation of nvidia-pytriton in ``site_packages``, or None."""
    root = site_packages / "pytriton" / "tritonserver"
    if not (root / "bin" / "tritonserver").exists():
        return None
    return Installation(root, Path(sys.executable).parent)


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
        str(installation.root / "bin" / "tritonserver"),
        f"--model-repository={plan.repository}",
        f"--backend-directory={installation.root / 'backends'}",
        f"--cache-directory={installation.root / 'caches'}",
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in plan.load),
        "--disable-auto-complete-config",
        f"--http-address={plan.address}",
        f"--http-port={plan.http_port}",
        f"--grpc-address={plan.address}",
        f"--grpc-port={plan.grpc_port}",
        f"--metrics-address={plan.address}",
        f"--metrics-port={plan.metrics_port}",
        "--allow-gpu-metrics=false",
        "--allow-cpu-metrics=false",
        f"--exit-timeout-secs={plan.exit_timeout_seconds}",
        *restrictions,
    )


def make_environment(installation: Installation, inherited: dict[str, str]) -> dict[str, str]:
    """The server's environment: PATH leads the Python backend's stub to the interpreter whose packages it shall use."""
    environment = {**inherited, "PATH": f"{installation.binaries}:{inherited.get('PATH', '/usr/bin:/bin')}"}
    libraries = ":".join(part for part in (installation.library_path, inherited.get("LD_LIBRARY_PATH", "")) if part)
    return {**environment, "LD_LIBRARY_PATH": libraries} if libraries else environment
