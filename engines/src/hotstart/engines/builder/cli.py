"""``hotstart-builder inspect | convert | build | bundle``: settings of the environment, last word to Kubernetes."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from hotstart.engines.builder.inspect import inspect
from hotstart.engines.builder.log_tail import LogTail, set_up_logging
from hotstart.engines.builder.settings import make_build_settings, make_inspect_settings
from hotstart.engines.builder.termination import (
    EXIT_SIGTERM,
    exit_code,
    make_failure,
    make_failure_message,
    make_result_message,
)
from hotstart.engines.errors import EngineError, Reason, Terminal
from hotstart.engines.runtimes.tensorrt_llm.tool import kill_running
from hotstart.exchange.messages import PodFailure

log = logging.getLogger(__name__)
TERMINATION_LOG = "/dev/termination-log"


def main(arguments: Sequence[str] | None = None) -> None:
    """Ends the process with 0, 64 (another try cannot help), 1 (it can), 137 (with more memory) or 143 (SIGTERM)."""
    parser = argparse.ArgumentParser(prog="hotstart-builder", description="Inspects checkpoints and builds engines.")
    parser.add_argument("command", choices=("inspect", "convert", "build", "bundle", "calibrate"))
    command = parser.parse_args(arguments).command
    signal.signal(signal.SIGTERM, _end_at_once)
    tail = set_up_logging()
    if command == "calibrate":
        serve_calibrator(os.environ)
    if command == "inspect":
        code = run_inspect(os.environ, tail)
    elif command == "convert":
        code = _run_until_done(run_convert(os.environ, tail))
    else:
        code = _run_until_done(run_build(os.environ, tail, bundle=command == "bundle"))
    logging.shutdown()
    os._exit(code)  # a thread that still converts a cancelled build must not hold the exit


def serve_calibrator(environment: Mapping[str, str]) -> NoReturn:
    """Answers the builder beside it once; ends with its pod, as a sidecar does, by SIGTERM."""
    from hotstart.engines.builder.calibration import serve

    serve(Path(environment["HOTSTART_CALIBRATOR"]))
    while True:
        signal.pause()


def run_inspect(environment: Mapping[str, str], tail: LogTail) -> int:
    """Writes the result or the failure, and returns the exit code."""
    try:
        result = inspect(make_inspect_settings(environment))
    except Exception as error:  # noqa: BLE001 - the program's edge: every failure becomes a reason and a message
        return _fail(environment, error, Reason.INSPECTION_FAILED, tail)
    write_termination(environment, make_result_message(result))
    return 0


async def run_convert(environment: Mapping[str, str], tail: LogTail) -> int:
    """Leaves the conversion for the container that builds; writes a failure, and returns the exit code."""
    from hotstart.engines.builder.conversion import convert_only  # only here: an inspection needs no converter
    from hotstart.engines.builder.serving import run_until_cancelled, served  # and no web server
    from hotstart.engines.builder.state import BuildState

    try:
        settings = make_build_settings(environment)
        if settings.converted is None:
            raise Terminal(Reason.INVALID_SPEC, "HOTSTART_CONVERTED is not set in the Job's environment.")
        state = BuildState(settings.pod_uid, settings.engine_key, tail)
        async with served(settings, state):
            work = asyncio.to_thread(convert_only, settings, state, settings.converted)
            error = await run_until_cancelled(work, state)
        if error is not None:
            raise error
    except Exception as error:  # noqa: BLE001 - the program's edge, as above
        return _fail(environment, error, Reason.BUILD_FAILED, tail)
    return 0


async def run_build(environment: Mapping[str, str], tail: LogTail, *, bundle: bool = False) -> int:
    """Builds the engine, or a tokenizer's bundle; writes the failure if there is one, and returns the exit code."""
    from hotstart.engines.builder.build import build  # only here: an inspection needs no web server

    try:
        failure = await build(make_build_settings(environment, bundle=bundle), tail)
    except Exception as error:  # noqa: BLE001 - the program's edge, as above
        return _fail(environment, error, Reason.BUILD_FAILED, tail)
    return 0 if failure is None else _end_failed(environment, failure, tail)


def write_termination(environment: Mapping[str, str], text: str) -> None:
    """Leaves the last word where Kubernetes reads it; a file that cannot be written must not hide the exit code."""
    path = Path(environment.get("HOTSTART_TERMINATION_LOG", TERMINATION_LOG))
    try:
        path.write_text(text)
    except OSError as error:
        log.warning("termination message not written path=%s error=%s", path, error)


def _run_until_done(job: Coroutine[Any, Any, int]) -> int:
    """Not asyncio.run: that would wait for the thread that still converts what the operator has cancelled."""
    return asyncio.new_event_loop().run_until_complete(job)


def _fail(environment: Mapping[str, str], error: Exception, otherwise: Reason, tail: LogTail) -> int:
    failure = make_failure(error, otherwise)
    unforeseen = None if isinstance(error, EngineError) else error  # only such a one is worth a stack trace
    log.error("failed reason=%s message=%s", failure.reason, failure.message, exc_info=unforeseen)
    return _end_failed(environment, failure, tail)


def _end_failed(environment: Mapping[str, str], failure: PodFailure, tail: LogTail) -> int:
    write_termination(environment, make_failure_message(failure, tail.lines()))
    return exit_code(failure)


def _end_at_once(number: int, frame: FrameType | None) -> None:
    kill_running()
    os._exit(EXIT_SIGTERM)
