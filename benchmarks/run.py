"""`make bench`: every benchmark, one after the other; figures in build/bench/ with machine and date.

The last ones look at a running Hotstart: the one that `make demo` leaves up, or else the demo is run before them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ALONE = (
    *("exchange", "loadgen", "router", "completion", "key", "transfers", "convert_mpt", "reference", "replit_laptop"),
    *("verify", "calibrate", "tensorrt_llm_path"),
)
IN_DEMO = ("first_write", "memory")
RUNNING = HERE.parent / "build" / "cluster" / "cluster.json"


def main() -> int:
    """1 if a benchmark failed, else 0; the others are run all the same."""
    failed = []
    for name in (*ALONE, *IN_DEMO):
        if name == IN_DEMO[0] and not RUNNING.exists() and not run("demo", "-m", "hotstart.demo"):
            failed.append("demo")
        if not run(name, str(HERE / f"{name}.py")):
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def run(name: str, *arguments: str) -> bool:
    """Whether the program ended well."""
    print(f"--- {name}", flush=True)
    return subprocess.run((sys.executable, *arguments), check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
