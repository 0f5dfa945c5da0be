"""Several ranks: agent and hotstart-triton as a pod has them, with an mpirun that starts rank 0 only.

The stand-in behind it is one process; that ranks share an engine over MPI has run nowhere yet.
"""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hotstart.engines.pod_agent.load_failures import find_known_failure
from hotstart.exchange.messages import PodRequest, PodState

from tests.support import pod as support
from tests.support.pod import Pod, Store, make_assignment, until
from tests.support.standin_engine import make_backends, write_standin_engine
from tests.support.triton import SOURCES, TritonServer, triton_venv

pytestmark = pytest.mark.integration
MPIRUN = Path(support.__file__).parent / "mpi"
KUBELET_KEEPS = 2048  # bytes of a container's log, as its termination message (FallbackToLogsOnError)


@pytest.fixture
async def ranks_store(store: Store, engine_folder: Path) -> AsyncIterator[Store]:
    """The store with an engine of two ranks."""
    for path in store.folder.iterdir():
        path.unlink()
    write_standin_engine(store.folder, engine_folder, ranks=2)
    yield store


def start(pod: Pod, backends: Path) -> None:
    """Both containers of a pod with two GPUs."""
    plan = pod.plan
    pod.environment = {"HOTSTART_RUNTIME": "tensorrt_llm", "HOTSTART_TENSOR_PARALLEL": "2"}
    pod.start_agent()
    others = {
        "--backend-directory": str(make_backends(backends)),
        **{f"--{name}-address": "127.0.0.1" for name in ("http", "grpc", "metrics")},
        "--http-port": plan.http_port,
        "--grpc-port": plan.grpc_port,
        "--metrics-port": plan.metrics_port,
    }
    venv, log = triton_venv(), pod.root / "triton.log"
    environment = {
        **os.environ,
        "PATH": f"{MPIRUN}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR") or "",
        "FAKE_MPIRUN": json.dumps(others),
        "HOTSTART_SOURCES": os.pathsep.join(SOURCES),
        "HOTSTART_RUN": str(pod.root / "run"),
        "HOTSTART_MODELS": str(pod.root / "models"),
        "HOTSTART_TENSOR_PARALLEL": "2",
        "HOTSTART_TRITON": f"127.0.0.1:{plan.http_port}",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [venv / "bin" / "python", "-c", "from hotstart.engines.triton.cli import main; raise SystemExit(main())"],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    pod.triton = TritonServer(process, plan, log)


async def test_an_engine_of_two_ranks_is_served(pod: Pod, ranks_store: Store, tmp_path: Path) -> None:
    """Triton starts with the engine, once the agent has written the repository; then the completion model is loaded."""
    start(pod, tmp_path / "backends")
    request = PodRequest(assignment=make_assignment(runtime="tensorrt_llm"), files=ranks_store.files())
    await pod.reach(request, PodState.READY)
    assert await pod.complete()
    log = (pod.root / "triton.log").read_text()
    assert log.index("waiting for the engine") < log.index("successfully loaded 'tensorrt_llm'")
    assert log.count("successfully loaded 'tensorrt_llm'") == 1


async def test_a_server_that_ends_as_it_loads_says_why_in_its_last_words(
    pod: Pod, ranks_store: Store, tmp_path: Path
) -> None:
    """The agent cannot be told, for no port was opened; the operator reads what the kubelet keeps of the log."""
    (ranks_store.folder / "rank0.engine").write_text("[TensorRT-LLM][ERROR] MPI size 1 != TP size 2 * PP size 1")
    start(pod, tmp_path / "backends")
    request = PodRequest(assignment=make_assignment(runtime="tensorrt_llm"), files=ranks_store.files())
    await pod.reach(request, PodState.LOADING)
    assert pod.triton is not None
    process = pod.triton.process

    async def ended() -> bool:
        return process.poll() is not None

    await until(ended, "tritonserver and mpirun ended")
    assert process.returncode != 0
    failure = find_known_failure((pod.root / "triton.log").read_bytes()[-KUBELET_KEEPS:].decode())
    assert failure is not None
    assert (failure.failure.reason, failure.failure.retryable) == ("AcceleratorMismatch", False)
    assert (await pod.ask(request)).state is PodState.LOADING
