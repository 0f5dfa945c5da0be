"""`hotstart-operator run`: the control plane."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence

from hotstart.operator.app.process import run
from hotstart.operator.core.errors import BadSettings, HotstartError
from hotstart.operator.settings import read_settings

EXIT_BAD_SETTINGS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """The program's entry; returns its exit status."""
    parser = argparse.ArgumentParser(prog="hotstart-operator", description="The control plane of Hotstart.")
    parser.add_argument("command", nargs="?", choices=("run",), default="run", help="run the operator (the default)")
    parser.add_argument("--log-level", default=os.environ.get("HOTSTART_LOG_LEVEL", "INFO"), help="default: INFO")
    options = parser.parse_args(arguments)
    level = logging.getLevelNamesMapping().get(options.log_level.upper())
    if level is None:
        print(f"hotstart-operator: unknown log level {options.log_level!r}", file=sys.stderr)
        return EXIT_BAD_SETTINGS
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for name in ("kopf", "aiohttp.access", "botocore", "urllib3"):
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    try:
        return asyncio.run(run(read_settings(os.environ)))
    except BadSettings as error:
        print(f"hotstart-operator: {error}", file=sys.stderr)
        return EXIT_BAD_SETTINGS
    except (HotstartError, OSError) as error:
        print(f"hotstart-operator: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
