"""`make bench`: every benchmark, one after the other; figures in build/bench/ with machine and date.

Those that look at a running Hotstart use the cluster that `make demo` leaves up.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ORDER = (
    *("exchange", "loadgen", "router", "completion", "transfers", "convert_mpt", "reference", "replit_laptop"),
    *("calibrate", "first_write", "memory"),
)


def main() -> int:
    """1 if a benchmark failed, else 0; the others are run all the same."""
    failed = []
    for name in ORDER:
        print(f"--- {name}", flush=True)
        if subprocess.run((sys.executable, str(HERE / f"{name}.py")), check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
