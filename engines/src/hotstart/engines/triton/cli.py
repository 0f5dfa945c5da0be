"""hotstart-triton: waits until the pod agent has made the key and the model repository, then becomes tritonserver.

With tensor parallelism it becomes mpirun, and waits first until the agent has fetched the engine and written the whole
repository; that may take as long as a fetch takes, and the pod's startup probe bounds it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import sysconfig
import time
from pathlib import Path

from hotstart.engines.triton.server import (
    KEY_FILE,
    ServerPlan,
    clear_shared_memory,
    find_container,
    find_installation,
    make_command,
    make_environment,
)
from hotstart.engines.triton.trtllm_config import TRTLLM_MODEL

log = logging.getLogger("hotstart.triton")
WAIT_SECONDS = 60.0
POLL_SECONDS = 0.05
MOST_RANKS = 8


def wait_for_key(folder: Path, repository: Path) -> str | None:
    """The pod's key, once it is there and the repository's folder too; None if that took longer than a minute."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        try:
            key = (folder / KEY_FILE).read_text().strip()
        except FileNotFoundError:
            key = ""
        if key and repository.is_dir():
            return key
        time.sleep(POLL_SECONDS)
    return None


def wait_for_engine(repository: Path) -> None:
    """Returns once the repository is whole. There is no time limit: an engine is as large as it is."""
    config = repository / TRTLLM_MODEL / "config.pbtxt"
    log.info("waiting for the engine and its repository path=%s", config)
    while not config.exists():
        time.sleep(POLL_SECONDS)


def read_ranks(text: str) -> int | None:
    """The number of ranks in HOTSTART_TENSOR_PARALLEL; None where that is no number from 1 to 8."""
    return int(text) if text.isdigit() and 1 <= int(text) <= MOST_RANKS else None


def main() -> int:  # does not return where all is well
    """The console script.

    Environment: HOTSTART_RUN (/run/hotstart), HOTSTART_MODELS (/models), HOTSTART_TENSOR_PARALLEL (1).
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    run = Path(os.environ.get("HOTSTART_RUN", "/run/hotstart"))
    repository = Path(os.environ.get("HOTSTART_MODELS", "/models")) / "repository"
    ranks = read_ranks(os.environ.get("HOTSTART_TENSOR_PARALLEL", "1"))
    if ranks is None:
        log.error("HOTSTART_TENSOR_PARALLEL must be a whole number from 1 to %d", MOST_RANKS)
        return 2
    installation = find_container() or find_installation(Path(sysconfig.get_path("purelib")))
    if installation is None:
        log.error("tritonserver is not installed beside this program; use the image triton-cpu or triton-trtllm")
        return 1
    key = wait_for_key(run, repository)
    if key is None:
        log.error("no repository key; does the pod agent run? path=%s seconds=%s", run / KEY_FILE, WAIT_SECONDS)
        return 1
    if ranks > 1:
        wait_for_engine(repository)
    plan = ServerPlan(repository, key=key, ranks=ranks)
    clear_shared_memory(plan.shared_memory)
    command = make_command(plan, installation)
    log.info("starting %s repository=%s", Path(command[0]).name, repository)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return os.execvpe(command[0], command, make_environment(installation, dict(os.environ)))
