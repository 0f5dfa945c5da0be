"""`hotstart-loadtest`: load for a completion server at a rate that does not wait for its answers.

Exit codes: 0 the run is done; 1 more requests failed than --max-failures; 2 wrong usage, or the server or model is not
there; 3 the run is void, because the load generator was late; 130 ended by Ctrl-C, after the report.
"""

import sys
from collections.abc import Sequence

from hotstart.loadtest.arguments import make_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: that of the process) and return the exit code."""
    options = make_parser().parse_args(argv)
    # Only now: the sending processes import this file too, and need neither the HTTP library nor the progress bar.
    from hotstart.loadtest.command import execute

    return execute(options)


if __name__ == "__main__":
    sys.exit(main())
