"""What the completion model adds to a bare Triton call with a trivial engine: p50 and p95 (goal: 2 ms at p95).

Three real Tritons, asked request by request in turn by the router's own client: one with a model that answers at once,
one with the completion model on an engine that takes no time, and, to compare, one on a two-layer CTranslate2 engine
and one new token, whose own time is in its figure.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import record
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
TRIVIAL_ENGINE = Path(__file__).resolve().parent / "trivial_engine" / "model.py"
BARE, TRIVIAL, TWO_LAYERS = "bare", "completion", "completion_two_layers"


async def ask(stream: PodStream, name: str) -> float:
    """Milliseconds of one request."""
    began = time.perf_counter()
    call = Call(name, make_request(name, "def add(left, right):\n    return", None, OPTIONS), lambda: None)
    stream.send(call)
    while not (await call.next()).final:
        pass
    return (time.perf_counter() - began) * 1000


async def measure(addresses: dict[str, str]) -> dict[str, list[tuple[float, float]]]:
    """For each server, (p50, p95) in ms of each run, the servers in turn request by request."""
    streams = {name: PodStream(address, lambda: None) for name, address in addresses.items()}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in streams}
    for run in range(RUNS + 1):
        times: dict[str, list[float]] = {name: [] for name in streams}
        for number in range(REQUESTS):
            for name, stream in streams.items():
                times[name].append(await ask(stream, f"{name}-{run}-{number}"))
        if run:  # the first is the warm-up
            for name in streams:
                quantiles = statistics.quantiles(times[name], n=20)
                found[name].append((quantiles[9], quantiles[18]))
    for stream in streams.values():
        await stream.close()
    return found


def main() -> None:
    """Measures and records."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engine = write_tiny_engine(folder / "engine", shape=TinyShape(context=512))
        repositories = {BARE: TRIVIAL_MODEL}
        for name in (TRIVIAL, TWO_LAYERS):
            repositories[name] = write_repository(folder / name, engine, make_serving(inter_threads=1))
        shutil.copyfile(TRIVIAL_ENGINE, repositories[TRIVIAL] / "completion" / "1" / "model.py")
        addresses = {}
        for name, repository in repositories.items():
            server = start_triton(repository, load=("completion",), log=folder / f"{name}.log")
            stack.callback(server.stop)
            addresses[name] = server.grpc
        found = asyncio.run(measure(addresses))
    figures: dict[str, float] = {"runs": RUNS, "requests": REQUESTS}
    for index, quantile in enumerate(("p50", "p95")):
        figures[f"{BARE}_{quantile}_ms"] = record.median([run[index] for run in found[BARE]])
        for name, prefix in ((TRIVIAL, "added"), (TWO_LAYERS, "added_two_layers")):
            pairs = zip(found[BARE], found[name], strict=True)
            figures[f"{prefix}_{quantile}_ms"] = record.median(
                [with_it[index] - bare[index] for bare, with_it in pairs]
            )
    record.write("completion", figures, goals={"added_p95_ms": record.at_most(2)})


if __name__ == "__main__":
    main()
