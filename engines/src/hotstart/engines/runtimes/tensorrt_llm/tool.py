"""Runs one tool of the container: its lines are streamed, its last ones kept, and nothing of it outlives us.

A tool starts workers of its own (one for each rank), so it gets a process group, which is killed as a whole: when the
caller fails in the middle, by ``kill_running`` when the build is cancelled or the pod ends, and when the tool itself is
gone and a worker still holds its output open.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from hotstart.engines.errors import Reason, Terminal
from hotstart.engines.runtimes.tensorrt_llm.build_command import Command
from hotstart.engines.runtimes.tensorrt_llm.failures import LAST_LINES, make_failure
from hotstart.engines.runtimes.tensorrt_llm.progress import BAR

log = logging.getLogger(__name__)
LONGEST_LINE = 4096  # characters; a longer one comes in pieces
GRACE_SECONDS = 5.0  # in which workers may say their last once the tool has ended
#: Of this process's own environment; credentials of the checkpoint's store are not for a tool.
INHERITED = (
    *("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "LANG", "LC_ALL"),
    *("CUDA_", "NVIDIA_", "NCCL_", "OMPI_", "OPAL_", "UCX_", "TLLM_", "TRTLLM_"),
)
#: Libraries ask for the user's name, which the container's number may not have.
USER = {"USER": "hotstart", "LOGNAME": "hotstart"}
#: Where tools and their libraries write beside their output.
WRITTEN_TO = ("HOME", "TMPDIR", "XDG_CACHE_HOME", "HF_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")

#: What runs now, with its workers.
RUNNING: set[subprocess.Popen[str]] = set()


def run_tool(command: Command, folder: Path, on_line: Callable[[str], None]) -> None:
    """Runs the command to its end; its temporary files, caches and home are in ``folder``.

    Raises:
        EngineError: what its exit code and last lines say; ToolchainMismatch where there is no such program.
    """
    tail: deque[str] = deque(maxlen=LAST_LINES)
    name = Path(command.argv[0]).name
    log.info("tool started argv=%s", " ".join(command.argv))
    process = _start(command, folder)
    RUNNING.add(process)
    heard = threading.Event()
    threading.Thread(target=_end_workers, args=(process, heard), name=f"watch-{name}", daemon=True).start()
    try:
        assert process.stdout is not None
        while line := process.stdout.readline(LONGEST_LINE):
            if text := line.rstrip():
                if not BAR.search(text):  # hundreds of them would drive the words out of the tail
                    tail.append(text)
                    log.info("tool said tool=%s line=%s", name, text)
                on_line(text)
        code = process.wait()
    finally:
        heard.set()
        end(process)
    if code != 0:
        raise make_failure(name, code, tuple(tail))


def _end_workers(process: subprocess.Popen[str], heard: threading.Event) -> None:
    """Kills what a tool leaves behind when it ends; while a worker holds its output, reading does not end."""
    process.wait()
    if not heard.wait(GRACE_SECONDS):
        log.warning("workers outlive their tool pid=%d seconds=%s", process.pid, GRACE_SECONDS)
        kill_group(process)


def kill_running() -> None:
    """Kills every tool that runs, with its workers. Takes no lock: a signal handler may call it."""
    for process in tuple(RUNNING):
        kill_group(process)


def end(process: subprocess.Popen[str]) -> None:
    """Kills what is left of it, and waits until it is gone."""
    kill_group(process)
    process.wait()
    RUNNING.discard(process)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):  # what could not be written to a process that is gone
                stream.close()


def make_environment(command: Command, folder: Path, ours: Mapping[str, str]) -> dict[str, str]:
    """The tool's environment: the container's own, the command's, and places to write to. Pure."""
    kept = {name: value for name, value in ours.items() if name.startswith(INHERITED)}
    return {**kept, **USER, **dict.fromkeys(WRITTEN_TO, str(folder)), **command.environment}


def _start(command: Command, folder: Path) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            command.argv,
            cwd=folder,
            env=make_environment(command, folder, os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise Terminal(
            Reason.TOOLCHAIN_MISMATCH,
            f"No {command.argv[0]} here: engines of TensorRT-LLM are built by the chart's image.builderTrtllm.",
        ) from error


def kill_group(process: subprocess.Popen[str]) -> None:
    """Kills the process and all that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # gone already, or its number is another's by now
        os.killpg(process.pid, signal.SIGKILL)
