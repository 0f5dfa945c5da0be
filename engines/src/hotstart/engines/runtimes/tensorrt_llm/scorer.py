"""What verification asks of a TensorRT-LLM engine, through a process that holds it.

A BrokenEngine is a verdict that quarantines the engine's key. What the machine did to the process (its GPU or memory is
full or not there, it was killed, it takes too long) says nothing of the engine and is an error that may pass.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import subprocess
import sys
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from hotstart.engines.errors import EngineError, Reason, Retryable
from hotstart.engines.runtimes.tensorrt_llm.build_command import TOOL_ENVIRONMENT, Command
from hotstart.engines.runtimes.tensorrt_llm.failures import find_failure, make_failure
from hotstart.engines.runtimes.tensorrt_llm.tool import RUNNING, end, kill_group, make_environment
from hotstart.engines.verify.scorer import BrokenEngine

log = logging.getLogger(__name__)
MODULE = "hotstart.engines.runtimes.tensorrt_llm.score_process"
LOAD_SECONDS = 900.0  # libraries, workers, an engine of many gigabytes from a cold disk
ANSWER_SECONDS = 300.0
TAIL = 20  # lines of the process's log
PROCESS = "The process that verifies the engine"


class TensorRTLLMScorer:
    """Implements ``Scorer``. One loaded engine; its process, and the GPU's memory, go with the scorer."""

    def __init__(self, folder: Path, *, program: Sequence[str] = (sys.executable, "-m", MODULE)) -> None:
        """Raises BrokenEngine where the engine cannot be loaded, Retryable where the machine stands in its way."""
        self._tail: deque[str] = deque(maxlen=TAIL)
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._home = tempfile.TemporaryDirectory(prefix="score-")
        command = Command((*program, str(folder)), TOOL_ENVIRONMENT)
        self._process = subprocess.Popen(
            command.argv,
            env=make_environment(command, Path(self._home.name), os.environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        RUNNING.add(self._process)
        readers = (
            _read(self._process.stdout, self._answers.put),
            _read(self._process.stderr, lambda line, tail=self._tail: _note(tail, line)),  # type: ignore[misc]
        )
        self.close = weakref.finalize(self, _end, self._process, readers, self._home)
        try:
            self._wait(LOAD_SECONDS)
        except BaseException:
            self.close()
            raise

    def top_tokens(self, ids: Sequence[int], positions: Sequence[int]) -> tuple[int, ...]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"ids": list(ids), "positions": list(positions)}) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._end_failure() from error
        return tuple(int(token) for token in self._wait(ANSWER_SECONDS)["tokens"])

    def next_token(self, ids: Sequence[int]) -> int | None:
        return self.top_tokens(ids, (len(ids) - 1,))[0]

    def _wait(self, seconds: float) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=seconds)
        except queue.Empty:
            message = f"{PROCESS} has not answered within {seconds:.0f} s: the build is tried again."
            raise Retryable(Reason.BUILD_FAILED, message) from None
        if line is None:
            raise self._end_failure()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise self._failure(answer["error"], 0, answer["error"].splitlines())
        return answer

    def _end_failure(self) -> BrokenEngine | EngineError:
        """Of a process that has ended by itself."""
        code = self._process.wait()
        self.close()  # its last lines are read then
        said = make_failure("its process", code, tuple(self._tail)).message
        return self._failure(f"the engine cannot be run: {said}", code, ())

    def _failure(self, broken: str, code: int, lines: Sequence[str]) -> BrokenEngine | EngineError:
        """What may pass, by the exit code, ``lines`` and the log; else the engine is ``broken``."""
        known = find_failure(PROCESS, code, (*self._tail, *lines))
        return known if known is not None and known.retryable else BrokenEngine(broken)


def _read(stream: IO[str] | None, take: Callable[[str | None], object]) -> threading.Thread:
    """Hands on each line, and None at the end."""

    def run() -> None:
        assert stream is not None
        for line in stream:
            take(line.rstrip())
        take(None)

    thread = threading.Thread(target=run, name="score", daemon=True)
    thread.start()
    return thread


def _note(tail: deque[str], line: str | None) -> None:
    if line:
        tail.append(line)
        log.info("engine said line=%s", line)


def _end(
    process: subprocess.Popen[str], readers: Sequence[threading.Thread], home: tempfile.TemporaryDirectory[str]
) -> None:
    kill_group(process)
    for reader in readers:
        reader.join()
    end(process)
    home.cleanup()
