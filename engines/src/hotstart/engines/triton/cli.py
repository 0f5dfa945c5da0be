"""hotstart-triton: waits until the pod agent has made the key and the model repository, then becomes tritonserver."""

from __future__ import annotations

import logging
import os
import signal
import sys
import sysconfig
import time
from pathlib import Path

from hotstart.engines.triton.server import KEY_FILE, ServerPlan, find_installation, make_arguments, make_environment

log = logging.getLogger("hotstart.triton")
WAIT_SECONDS = 60.0
POLL_SECONDS = 0.05


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


def main() -> int:  # does not return where all is well
    """The console script. Environment: HOTSTART_RUN (/run/hotstart), HOTSTART_MODELS (/models)."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    run = Path(os.environ.get("HOTSTART_RUN", "/run/hotstart"))
    repository = Path(os.environ.get("HOTSTART_MODELS", "/models")) / "repository"
    installation = find_installation(Path(sysconfig.get_path("purelib")))
    if installation is None:
        log.error("tritonserver is not installed beside this program; use the image triton-cpu")
        return 1
    key = wait_for_key(run, repository)
    if key is None:
        log.error("no repository key; does the pod agent run? path=%s seconds=%s", run / KEY_FILE, WAIT_SECONDS)
        return 1
    arguments = make_arguments(ServerPlan(repository, key=key), installation)
    log.info("starting tritonserver repository=%s", repository)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return os.execve(arguments[0], arguments, make_environment(installation, dict(os.environ)))
