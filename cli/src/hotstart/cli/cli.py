"""`hotstart-engine plan | inspect | key | convert | build | verify | calibrate | gc`, without Kubernetes.

Exit codes: 0 done; 1 failed, and may succeed later (a store, a full disk, memory); 2 wrong usage; 64 failed or refused,
and will be until the checkpoint, the recipe or the machine is changed; 130 ended by Ctrl-C.
"""

from __future__ import annotations

import argparse
import errno
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

EXIT_RETRYABLE, EXIT_TERMINAL, EXIT_INTERRUPTED = 1, 64, 130
CHECKPOINT = "folder or file, or s3://BUCKET/PREFIX/, hf://ORG/NAME@COMMIT (AWS_* and HF_TOKEN of the environment)"
RECIPE = "YAML file of a CompletionModel's spec.engine, or of a whole CompletionModel"


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="hotstart-engine", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="one JSON object on stdout")
    common.add_argument("--quiet", action="store_true", help="no progress bar")
    common.add_argument("--verbose", action="store_true", help="logs of the builder on stderr")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[common])

    plan = add("plan", "what applying a CompletionModel would build, with which commands, and whether it fits")
    plan.add_argument("-f", "--file", type=Path, required=True, help="YAML file of a CompletionModel")
    plan.add_argument("--checkpoint", default="", help=f"instead of spec.checkpoint.uri: {CHECKPOINT}")
    plan.add_argument("--inspect", action="store_true", help="read the checkpoint whole, for the engine's key")
    plan.add_argument("--engines", type=Path, help="folder of engines to compare with (default: the cache)")

    inspect = add("inspect", "reads a checkpoint whole: what it is, its digests, whether anything is wrong with it")
    inspect.add_argument("checkpoint", help=CHECKPOINT)
    inspect.add_argument("--recipe", type=Path, help=RECIPE)
    inspect.add_argument("--runtime", choices=("ctranslate2", "tensorrt_llm"), default="ctranslate2")

    key = add("key", "the engine key of a checkpoint and a recipe")
    convert = add("convert", "writes what the runtime builds from, such as a TensorRT-LLM checkpoint")
    build = add("build", "converts, builds, verifies and calibrates an engine")
    for command in (key, convert, build):
        command.add_argument("checkpoint", help=CHECKPOINT)
        command.add_argument("--recipe", type=Path, required=True, help=RECIPE)
    for command in (convert, build):
        command.add_argument("--output", type=Path, required=True, help="new or empty folder")

    verify = add("verify", "holds an engine against its checkpoint, token by token")
    verify.add_argument("engine", type=Path, help="folder that `build` wrote")
    verify.add_argument("--checkpoint", required=True, help=CHECKPOINT)

    calibrate = add("calibrate", "measures an engine on this machine")
    calibrate.add_argument("engine", type=Path, help="folder that `build` wrote")
    calibrate.add_argument("--recipe", type=Path, help=f"whose serving options are used: {RECIPE}")

    gc = add(
        "gc",
        "engines, uploads and what builds have kept of namespaces that are gone; a dry run unless --delete. No cluster "
        "is asked what is in use: of a namespace that stands, name what stays by --keep, or let the operator sweep it",
    )
    gc.add_argument("--store", required=True, help="s3://BUCKET")
    gc.add_argument("--endpoint", default="", help="URL of the store; default AWS_ENDPOINT_URL, else AWS")
    gc.add_argument("--namespace-uid", action="append", default=[], help="whose engines may go; may be repeated")
    gc.add_argument(
        "--keep", action="append", default=[], metavar="KEY", help="a whole key, or an Engine's name, that stays"
    )
    gc.add_argument("--ttl", default="168h", help="only what was written longer ago (168h; uploads: 24h)")
    gc.add_argument("--delete", action="store_true", help="delete what is garbage")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    options = make_parser().parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO if options.verbose else logging.CRITICAL)
    from hotstart.cli.output import Output  # only now: --help needs no engine libraries
    from hotstart.engines.errors import EngineError, Reason

    output = Output(as_json=options.json, quiet=options.quiet)
    try:
        failure: EngineError | None = find_command(options.command)(options, output)
        return 0 if failure is None else exit_code(failure.retryable)
    except EngineError as error:
        output.fail(error.reason.value, error.message)
        return exit_code(error.retryable)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        place = f"{error.filename}: " if error.filename else ""
        remedy = (
            "free space, or set TMPDIR and --output to another disk" if full else "see to it, or name another place"
        )
        reason = Reason.DISK_FULL if full else Reason.INVALID_SPEC
        output.fail(reason.value, f"{place}{error.strerror or error}: {remedy}.")
        return exit_code(full)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def exit_code(retryable: bool) -> int:
    """Of a failure."""
    return EXIT_RETRYABLE if retryable else EXIT_TERMINAL


def find_command(name: str):  # type: ignore[no-untyped-def]  # each takes the options and the output
    """The function of a command; one that has shown more than its failure returns that."""
    from hotstart.cli import commands, gc, plan

    found = {"plan": plan.run_plan, "gc": gc.run_gc}
    return found.get(name) or getattr(commands, f"run_{name}")


if __name__ == "__main__":
    sys.exit(main())
