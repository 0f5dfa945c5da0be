"""The command line as a parser, and what was typed as a LoadPlan. Everything a user can get wrong is told here."""

import argparse
from dataclasses import replace
from pathlib import Path

from hotstart.loadtest.arrivals import (
    Arrival,
    choose_prompts,
    constant_arrivals,
    mark_cancels,
    poisson_arrivals,
    trace_arrivals,
)
from hotstart.loadtest.calibrate import LONGEST_STEP_S, SHORTEST_STEP_S
from hotstart.loadtest.durations import parse_duration
from hotstart.loadtest.plan import DRIFT_LIMIT_S, LoadPlan
from hotstart.loadtest.prompts import BUILT_IN_PROMPTS, read_prompts
from hotstart.loadtest.trace import read_trace

_DEFAULT_MAX_TOKENS = 32
_DEFAULT_MAX_CONTEXT_TOKENS = 512

_EXIT_CODES = """exit codes: 0 done; 1 more failures than --max-failures; 2 wrong usage, or server or model not there;
3 the run is void (the load generator was late); 130 ended by Ctrl-C, after the report"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of `hotstart-loadtest`."""
    parser = argparse.ArgumentParser(
        prog="hotstart-loadtest",
        description="Load for a completion server at a rate that does not wait for its answers.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="run | calibrate")
    _add_run(commands.add_parser("run", help="send load and report latencies", epilog=_EXIT_CODES))
    _add_calibrate(commands.add_parser("calibrate", help="find the highest rate that this machine sends on time"))
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", required=True, help="the server's root, http://host:port")
    parser.add_argument("--model", required=True, help="the model to ask, namespace/name")
    schedule = parser.add_argument_group("schedule").add_mutually_exclusive_group(required=True)
    schedule.add_argument("--rate", type=float, metavar="R", help="requests a second; needs --duration")
    schedule.add_argument("--trace", type=Path, metavar="FILE", help="CSV: TIMESTAMP,ContextTokens,GeneratedTokens")
    parser.add_argument("--duration", type=_duration, metavar="D", help="length of the run: 30s, 2m")
    parser.add_argument(
        "--arrivals", choices=("constant", "poisson"), default=None, help="gaps of --rate (default: constant)"
    )
    parser.add_argument("--speed", type=float, metavar="X", help="replay --trace X times as fast (default: 1)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N requests of --trace")
    parser.add_argument("--seed", type=int, default=0, help="of random gaps, prompts and cancels (default: 0)")
    parser.add_argument(
        "--max-tokens", type=_count, metavar="N", help="tokens a request (32; with --trace an upper bound)"
    )
    parser.add_argument(
        "--max-context-tokens", type=_count, metavar="N", help="longest prompt made from --trace (default: 512)"
    )
    parser.add_argument("--prompts", type=Path, metavar="FILE", help='JSON Lines of {"prompt": "..."}')
    parser.add_argument("--stream", action="store_true", help="ask for server-sent events; reports the first token")
    parser.add_argument("--cancel-fraction", type=float, default=0.0, metavar="F", help="share that hangs up, 0 to 1")
    parser.add_argument("--cancel-after", type=_duration, metavar="D", help="when they hang up: 100ms")
    parser.add_argument("--timeout", type=_duration, default=30.0, metavar="D", help="of one request (default: 30s)")
    parser.add_argument("--slo", type=_duration, metavar="D", help="report the share answered within D")
    parser.add_argument("--header", action="append", default=[], metavar="'N: V'", help="sent with each request")
    parser.add_argument("--drift-limit", type=_duration, default=DRIFT_LIMIT_S, metavar="D", help="(default: 5ms)")
    parser.add_argument("--max-failures", type=_non_negative, default=0, metavar="N", help="for exit code 0 (0)")
    _add_processes(parser)
    parser.add_argument("--no-check", action="store_true", help="begin without asking GET /v1/models")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the JSON to FILE as well")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_calibrate(parser: argparse.ArgumentParser) -> None:
    _add_processes(parser)
    parser.add_argument("--drift-limit", type=_limit, default=0.001, metavar="D", help="p99 (default: 1ms)")
    parser.add_argument("--step", type=_step, default=5.0, metavar="D", help="length of each run (default: 5s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def _add_processes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--processes", type=_count, default=1, metavar="K", help="sending processes (default: 1)")
    parser.add_argument(
        "--realtime",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="let them run ahead of ordinary processes, where the system allows it",
    )


def make_plan(options: argparse.Namespace) -> LoadPlan:
    """Return the plan that the parsed options of `run` ask for.

    Raises ValueError naming the option at fault.
    """
    prompts = BUILT_IN_PROMPTS if options.prompts is None else read_prompts(options.prompts)
    arrivals = _trace_schedule(options) if options.trace is not None else _rate_schedule(options)
    arrivals = choose_prompts(arrivals, len(prompts), seed=options.seed)
    arrivals = mark_cancels(arrivals, options.cancel_fraction, seed=options.seed)
    plan = LoadPlan(
        url=options.url,
        model=options.model,
        arrivals=arrivals,
        prompts=prompts,
        stream=options.stream,
        timeout_s=options.timeout,
        cancel_after_s=options.cancel_after,
        slo_s=options.slo,
        drift_limit_s=options.drift_limit,
        headers=_parse_headers(options.header),
    )
    return plan if options.trace is not None else replace(plan, schedule_s=options.duration)


def _rate_schedule(options: argparse.Namespace) -> tuple[Arrival, ...]:
    for name in ("speed", "limit", "max_context_tokens"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} belongs to --trace, not to --rate")
    if options.duration is None:
        raise ValueError("--rate needs --duration, such as --duration 30s")
    max_tokens = options.max_tokens or _DEFAULT_MAX_TOKENS
    if options.arrivals == "poisson":
        return poisson_arrivals(options.rate, options.duration, seed=options.seed, max_tokens=max_tokens)
    return constant_arrivals(options.rate, options.duration, max_tokens=max_tokens)


def _trace_schedule(options: argparse.Namespace) -> tuple[Arrival, ...]:
    if options.arrivals is not None:
        raise ValueError("--arrivals belongs to --rate; a trace has its own arrivals")
    return trace_arrivals(
        read_trace(options.trace),
        speed=1.0 if options.speed is None else options.speed,
        limit=options.limit,
        duration=options.duration,
        max_tokens=options.max_tokens,
        max_context_tokens=options.max_context_tokens or _DEFAULT_MAX_CONTEXT_TOKENS,
    )


def _parse_headers(lines: list[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        name, separator, value = line.partition(":")
        if not separator or not name.strip():
            raise ValueError(f"--header {line!r} is no header; write it as 'Name: value'")
        headers[name.strip()] = value.strip()
    return headers


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _limit(text: str) -> float:
    if not (seconds := _duration(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no limit; it must be longer than zero")
    return seconds


def _step(text: str) -> float:
    if not SHORTEST_STEP_S <= (seconds := _duration(text)) <= LONGEST_STEP_S:
        shortest, longest = f"{SHORTEST_STEP_S * 1e3:g}ms", f"{LONGEST_STEP_S:g}s"
        raise argparse.ArgumentTypeError(f"{text!r} is no length of a calibration's run; give {shortest} to {longest}")
    return seconds


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _non_negative(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)
