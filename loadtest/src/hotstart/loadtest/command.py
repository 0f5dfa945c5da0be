"""The commands of `hotstart-loadtest`, carried out: check the target, run, report, decide the exit code.

Of the exit codes (see `cli`), interrupted comes before void and void before failures: of a void run not even the
failures are to be believed.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from hotstart.loadtest.arguments import make_plan
from hotstart.loadtest.calibrate import calibrate
from hotstart.loadtest.durations import format_milliseconds
from hotstart.loadtest.fleet import FleetError, run_in_processes
from hotstart.loadtest.plan import LoadPlan
from hotstart.loadtest.preflight import TargetUnfit, check_target
from hotstart.loadtest.progress import show_progress
from hotstart.loadtest.report import print_report
from hotstart.loadtest.result import LoadResult
from rich.console import Console

EXIT_OK = 0
EXIT_FAILURES = 1
EXIT_USAGE = 2
EXIT_VOID = 3
EXIT_INTERRUPTED = 130


def execute(options: argparse.Namespace) -> int:
    """Do what the parsed command line says and return the exit code; what is wrong goes to standard error."""
    try:
        return asyncio.run(_calibrate(options)) if options.command == "calibrate" else _check_and_run(options)
    except KeyboardInterrupt:
        print("hotstart-loadtest: ended before anything was sent", file=sys.stderr)
        return EXIT_INTERRUPTED
    except FleetError as error:
        print(f"hotstart-loadtest: {error}", file=sys.stderr)
        return EXIT_FAILURES


def decide_exit_code(result: LoadResult, *, max_failures: int) -> int:
    """Return the exit code that `result` deserves (see `cli`)."""
    if result.interrupted:
        return EXIT_INTERRUPTED
    if result.void:
        return EXIT_VOID
    if result.summary.failed > max_failures:
        return EXIT_FAILURES
    return EXIT_OK


def _check_and_run(options: argparse.Namespace) -> int:
    try:
        plan = make_plan(options)
        _check_output(options.output)
        if not options.no_check:
            asyncio.run(check_target(plan))
    except (ValueError, TargetUnfit) as error:
        print(f"hotstart-loadtest: {error}", file=sys.stderr)
        return EXIT_USAGE
    return asyncio.run(_run(options, plan))


async def _run(options: argparse.Namespace, plan: LoadPlan) -> int:
    stop = _stop_on_signals()
    console = Console(stderr=True)
    with show_progress(console, len(plan.arrivals), enabled=not options.quiet) as progress:
        result = await run_in_processes(
            plan, options.processes, progress=progress, stop=stop, realtime=options.realtime
        )
    _write(options, result)
    return decide_exit_code(result, max_failures=options.max_failures)


def _stop_on_signals() -> asyncio.Event:
    """Return the event that Ctrl-C or SIGTERM sets from now on, instead of ending the command."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def _check_output(path: Path | None) -> None:
    """Raise ValueError now, not after the run, when the report could not be written."""
    if path is None:
        return
    try:
        path.open("a", encoding="utf-8").close()
    except OSError as error:
        raise ValueError(f"--output {path}: cannot be written: {error.strerror}") from None


def _write(options: argparse.Namespace, result: LoadResult) -> None:
    text = json.dumps(result.to_json(), indent=2, ensure_ascii=False)
    try:
        if options.output is not None:
            options.output.write_text(text + "\n", encoding="utf-8", errors="replace")
    finally:  # a full disk does not take the printed report too
        _print(text if options.json else _draw_report(result))


def _draw_report(result: LoadResult) -> str:
    console = Console(highlight=False)
    with console.capture() as drawn:
        print_report(result, console)
    return drawn.get().rstrip("\n")


def _print(text: str) -> None:
    """Print `text` as far as the encoding of standard output goes, and as far as anybody reads it."""
    encoding = sys.stdout.encoding
    try:
        print(text.encode(encoding, errors="replace").decode(encoding), flush=True)
    except BrokenPipeError:  # the reader, such as `head`, has enough; Python would try to write the rest at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


async def _calibrate(options: argparse.Namespace) -> int:
    def tell(result: LoadResult) -> None:
        drift = result.summary.drift.p99
        verdict = "late" if result.void else "failures" if result.summary.failed else "held"
        shown = "-" if drift is None else format_milliseconds(drift)
        print(f"{result.summary.rate:8.0f}/s  drift p99 {shown:>9}  {verdict}", file=sys.stderr)

    found = await calibrate(
        processes=options.processes,
        drift_limit_s=options.drift_limit,
        step_s=options.step,
        realtime=options.realtime,
        tell=tell,
        stop=_stop_on_signals(),
    )
    if options.json:
        _print(json.dumps(found.to_json(), indent=2))
    else:
        _print(
            f"{'Interrupted; so far ' if found.interrupted else ''}{found.processes} sending process(es) hold up to "
            f"{found.max_rate:.0f} requests/s with a drift p99 of at most {format_milliseconds(found.drift_limit_s)}"
        )
    if found.interrupted:
        return EXIT_INTERRUPTED
    return EXIT_OK if found.max_rate else EXIT_VOID
