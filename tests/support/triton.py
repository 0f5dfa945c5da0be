"""A real Triton on this machine for tests and benchmarks: ``start_triton(repository, ...)`` -> ``TritonServer``.

The environment it runs in is made by ``images/triton-cpu/make-venv`` (once a lock). Ports are free ones on loopback.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from hotstart.engines.triton.completion.names import ADDRESS_VARIABLE
from hotstart.engines.triton.server import (
    Installation,
    ServerPlan,
    clear_shared_memory,
    make_arguments,
    make_environment,
)

from tests.support.ports import free_port

REPOSITORY_ROOT = Path(__file__).resolve().parents[2]
SOURCES = tuple(str(REPOSITORY_ROOT / tree / "src") for tree in ("operator", "engines"))
TRIVIAL_MODEL = Path(__file__).resolve().parent / "trivial_model"


@cache
def triton_venv() -> Path:
    """The environment with Triton and the CPU runtime."""
    made = subprocess.run(
        [str(REPOSITORY_ROOT / "images/triton-cpu/make-venv")], check=True, stdout=subprocess.PIPE, text=True
    )
    return Path(made.stdout.strip())


def installation() -> Installation:
    """Where that environment's server lies."""
    venv = triton_venv()
    [site] = venv.glob("lib/python3.*/site-packages")
    library = sysconfig.get_config_var("LIBDIR") or ""
    return Installation(site / "pytriton/tritonserver", venv / "bin", library)


def make_shared_memory_prefix() -> str:
    """A name of its own for a server's regions in /dev/shm, so that ``kill`` finds them."""
    return f"hotstart-{uuid.uuid4().hex[:12]}-"


@dataclass
class TritonServer:
    """A running server; addresses are ``host:port``. Ends with ``stop`` (SIGTERM) or ``kill`` (SIGKILL)."""

    process: subprocess.Popen[bytes]
    plan: ServerPlan
    log: Path

    @property
    def http(self) -> str:
        return f"127.0.0.1:{self.plan.http_port}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.plan.grpc_port}"

    @property
    def metrics(self) -> str:
        return f"127.0.0.1:{self.plan.metrics_port}"

    def kill(self) -> None:
        """SIGKILL to the server and its stubs: they share its process group, and a stub may outlive its server."""
        with contextlib.suppress(ProcessLookupError):  # all of them have ended
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        clear_shared_memory(self.plan.shared_memory)

    def stop(self, seconds: float = 15.0) -> None:
        """SIGTERM, and SIGKILL to what has not ended in time."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        self.kill()


def start_triton(
    repository: Path,
    *,
    load: tuple[str, ...] = (),
    key: str = "",
    log: Path | None = None,
    like: ServerPlan | None = None,
    wait: bool = True,
    prefix: tuple[str, ...] = (),
    backends: Path | None = None,
    exit_timeout_seconds: int = 5,
) -> TritonServer:
    """Starts Triton on ``repository`` (explicit model control) and waits until it is live and ``load`` is loaded.

    ``like``: the plan of an earlier server, to start one anew on the same ports. ``prefix``: put before the command,
    e.g. ``("taskset", "-c", "1")``. ``backends``: another folder of backends than the installation's. The log goes to
    ``log`` (by default triton.log beside the repository). ``exit_timeout_seconds``: how long its end may take.

    Raises:
        AssertionError: it ended, or was not live in 30 s; the message has the end of its log.
    """
    plan = like or ServerPlan(
        repository,
        key=key,
        address="127.0.0.1",
        http_port=free_port(),
        grpc_port=free_port(),
        metrics_port=free_port(),
        exit_timeout_seconds=exit_timeout_seconds,
        load=load,
        shared_memory=make_shared_memory_prefix(),
    )
    where = replace(installation(), backends=backends)
    own = {"HOTSTART_SOURCES": os.pathsep.join(SOURCES), ADDRESS_VARIABLE: f"127.0.0.1:{plan.http_port}"}
    environment = make_environment(where, {**os.environ, **own})
    log = log or repository.with_name("triton.log")
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*prefix, *make_arguments(plan, where)],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    server = TritonServer(process, plan, log)
    if wait:
        _wait_live(server)
    return server


def _wait_live(server: TritonServer, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"http://{server.http}/v2/health/live", timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    tail = server.log.read_text(errors="replace")[-3000:]
    server.kill()
    raise AssertionError(f"Triton did not become live:\n{tail}")
