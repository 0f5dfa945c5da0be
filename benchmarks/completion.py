"""What the completion model adds to a bare Triton call with a trivial engine: p50 and p95 (goal: 2 ms at p95).

Two real Tritons, asked in turn by the router's own client: one with a model that answers at once, one with the
completion model on a two-layer engine and one new token. The trivial engine's own time is in the second figure.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

import record

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hotstart.router.call import Call
from hotstart.router.pod_stream import PodStream
from hotstart.router.wire import make_request

from tests.support.pod import make_serving, write_repository
from tests.support.tiny_checkpoint import TinyShape
from tests.support.tiny_engine import write_tiny_engine
from tests.support.triton import TRIVIAL_MODEL, start_triton

RUNS = 7
REQUESTS = 200
OPTIONS = b'{"max_tokens":1,"temperature":0}'


async def ask(stream: PodStream, name: str) -> float:
    """Milliseconds of one request."""
    began = time.perf_counter()
    call = Call(name, make_request(name, "def add(left, right):\n    return", None, OPTIONS), lambda: None)
    stream.send(call)
    while not (await call.next()).final:
        pass
    return (time.perf_counter() - began) * 1000


async def measure(addresses: dict[str, str]) -> dict[str, list[tuple[float, float]]]:
    """For each server, (p50, p95) in ms of each run, the servers in turn."""
    streams = {name: PodStream(address, lambda: None) for name, address in addresses.items()}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in streams}
    for run in range(RUNS + 1):
        for name, stream in streams.items():
            times = [await ask(stream, f"{name}-{run}-{number}") for number in range(REQUESTS)]
            if run:  # the first is the warm-up
                quantiles = statistics.quantiles(times, n=20)
                found[name].append((quantiles[9], quantiles[18]))
    for stream in streams.values():
        await stream.close()
    return found


def main() -> None:
    """Measures and records."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        engine = write_tiny_engine(folder / "engine", shape=TinyShape(context=512))
        repository = write_repository(folder / "repository", engine, make_serving(inter_threads=1))
        bare = start_triton(TRIVIAL_MODEL, load=("completion",), log=folder / "bare.log")
        try:
            served = start_triton(repository, load=("completion",), log=folder / "served.log")
            try:
                found = asyncio.run(measure({"bare": bare.grpc, "completion": served.grpc}))
            finally:
                served.stop()
        finally:
            bare.stop()
    figures: dict[str, float] = {"runs": RUNS, "requests": REQUESTS}
    for index, name in enumerate(("p50", "p95")):
        pairs = list(zip(found["bare"], found["completion"], strict=True))
        figures[f"bare_{name}_ms"] = record.median([left[index] for left, _ in pairs])
        figures[f"completion_{name}_ms"] = record.median([right[index] for _, right in pairs])
        figures[f"added_{name}_ms"] = record.median([right[index] - left[index] for left, right in pairs])
    record.write("completion", {**figures, "goal_added_p95_ms": 2})


if __name__ == "__main__":
    main()
