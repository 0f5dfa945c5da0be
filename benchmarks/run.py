"""`make bench`: every benchmark, one after the other; figures in build/bench/ with machine and date, goals at the end.

Those that look at a running Hotstart come first: on the demo's cluster if it stands, else the demo is run for them.
Then the cluster is ended, so that the others have the machine for themselves, each once the machine is idle.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from hotstart.cluster.cluster import read
from hotstart.cluster.layout import Layout
from hotstart.loadtest.machine import gather_processor_times

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BENCH = ROOT / "build" / "bench"
IN_DEMO = ("memory", "first_write")
ALONE = (
    *("exchange", "loadgen", "router", "router_streams", "completion", "disconnect", "key", "transfers"),
    *("convert_mpt", "reference", "replit_laptop", "verify", "calibrate", "tensorrt_llm_path"),
)
CLUSTER = ROOT / "build" / "cluster"
LIMIT_SECONDS = 1800.0  # of one benchmark
IDLE_SHARE = 0.9  # of the processors' time, over IDLE_SECONDS
IDLE_SECONDS = 2.0
IDLE_PATIENCE = 60.0  # then a benchmark runs all the same; its file says what the load was


def main() -> int:
    """1 if a benchmark failed, else 0; the others are run all the same. A goal that is missed is no failure."""
    began = time.monotonic()
    failed = []
    for name in (*IN_DEMO, *ALONE):  # a benchmark that fails leaves no figures, not those of an earlier run
        (BENCH / f"{name}.json").unlink(missing_ok=True)
    if read(Layout(CLUSTER)) is None and not run("demo", "-m", "hotstart.demo"):
        failed.append("demo")
    failed += [name for name in IN_DEMO if not run(name, str(HERE / f"{name}.py"))]
    run("down", "-m", "hotstart.cluster.cli", "down", "--dir", str(CLUSTER))
    for name in ALONE:
        wait_idle()
        if not run(name, str(HERE / f"{name}.py")):
            failed.append(name)
    print_goals()
    print(f"{len(IN_DEMO) + len(ALONE)} benchmarks in {(time.monotonic() - began) / 60:.0f} min: {BENCH}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def run(name: str, *arguments: str) -> bool:
    """Whether the program ended well, and in time."""
    print(f"--- {name}", flush=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        command = (sys.executable, *arguments)
        return subprocess.run(command, check=False, env=environment, cwd=ROOT, timeout=LIMIT_SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        print(f"{name} was ended after {LIMIT_SECONDS / 60:.0f} min", file=sys.stderr)
        return False


def wait_idle() -> None:
    """Until nothing else uses the processors, or patience ends."""
    deadline = time.monotonic() + IDLE_PATIENCE
    while time.monotonic() < deadline:
        before = gather_processor_times()
        time.sleep(IDLE_SECONDS)
        after = gather_processor_times()
        if before is None or after is None or after.idle_since(before) >= IDLE_SHARE:
            return


def print_goals() -> None:
    """Every figure that has a goal, beside it."""
    for file in sorted(BENCH.glob("*.json")):
        for key, said in json.loads(file.read_text()).get("goals", {}).items():
            verdict = "met" if said["met"] else "MISSED"
            print(f"{file.stem:16} {key:44} {said['value']:>12} {said['goal']:>16} {verdict}")


if __name__ == "__main__":
    sys.exit(main())
