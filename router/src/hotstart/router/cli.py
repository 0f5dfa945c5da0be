"""``hotstart-router``: the program in the router's Deployment."""

from __future__ import annotations

import logging
import os
import sys

import uvloop
from hotstart.router.program import run
from hotstart.router.settings import parse_settings


def main() -> None:
    """Runs until SIGTERM; exit status 1 with one sentence when a port cannot be had."""
    settings = parse_settings(sys.argv[1:], os.environ)
    logging.basicConfig(
        level=settings.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    try:
        uvloop.run(run(settings))
    except OSError as error:
        sys.exit(f"hotstart-router: {error}; choose another --port or --exchange-port")


if __name__ == "__main__":
    main()
