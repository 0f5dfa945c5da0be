"""One gRPC stream a request, or one a pod with cancel by id: what each costs. The figures of ADR 11.

A real Triton with the trivial model and the measuring client share the machine. Run by ``router.py`` or alone.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import record

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hotstart.router.call import Call
from hotstart.router.pod_stream import CHANNEL_OPTIONS, PodStream
from hotstart.router.stubs import service_pb2
from hotstart.router.wire import Piece, make_request, read_answer

from tests.support.scripts import script, script_when_idle
from tests.support.triton import REPOSITORY_ROOT, TRIVIAL_MODEL, start_triton

OPTIONS = b'{"max_tokens":16,"stream":false}'
RUNS = 5
SERIAL = 300
PARALLEL = 1500
CONCURRENCY = 32
CANCELS = 25

Ask = Callable[[str], Awaitable[None]]


class StreamPerRequest:
    """The way not taken: a stream of its own for each request, on one channel; cancelled by cancelling the stream."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._infer = self._channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
        )

    async def ask(self, name: str, prompt: str = "def f(x):") -> None:
        stream = self._infer(timeout=30)
        await stream.write(make_request(name, prompt, None, OPTIONS))
        await stream.done_writing()
        async for message in stream:
            _, item = read_answer(message)
            if isinstance(item, Piece) and item.final:
                return

    async def close(self) -> None:
        await self._channel.close()


class StreamPerPod:
    """The router's own way."""

    def __init__(self, address: str) -> None:
        self._stream = PodStream(address, lambda: None)

    async def ask(self, name: str, prompt: str = "def f(x):") -> None:
        call = Call(name, make_request(name, prompt, None, OPTIONS), lambda: None)
        self._stream.send(call)
        try:
            while not (await call.next()).final:
                pass
        finally:
            if not call.over:
                self._stream.cancel(call)

    async def close(self) -> None:
        await self._stream.close()


def cpu_seconds() -> float:
    """Processor time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def serial(ask: Ask) -> list[float]:
    """Milliseconds of each of SERIAL requests, one after the other."""
    taken = []
    for number in range(SERIAL):
        began = time.perf_counter()
        await ask(f"serial-{number}")
        taken.append((time.perf_counter() - began) * 1000)
    return taken


async def parallel(ask: Ask) -> tuple[float, float]:
    """Requests a second with CONCURRENCY at once, and this process's processor milliseconds a request."""
    names = iter(range(PARALLEL))

    async def work() -> None:
        for number in names:
            await ask(f"parallel-{number}")

    began, cpu = time.perf_counter(), cpu_seconds()
    await asyncio.gather(*(work() for _ in range(CONCURRENCY)))
    return PARALLEL / (time.perf_counter() - began), (cpu_seconds() - cpu) * 1000 / PARALLEL


async def cancel_to_free(way: Any) -> float:
    """Milliseconds from a client's cancel until the scripted model, steps of 1 ms, says that nothing runs."""
    name = f"long-{time.perf_counter_ns()}"
    task = asyncio.create_task(way.ask(name, script(steps=100_000, step_ms=1)))
    await asyncio.sleep(0.05)
    began = time.perf_counter()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await way.ask(f"after-{name}", script_when_idle())
    return (time.perf_counter() - began) * 1000


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


async def measure_once(way: Any) -> dict[str, float]:
    """One run of one way against the trivial model."""
    taken = await serial(way.ask)
    rate, cpu = await parallel(way.ask)
    return {
        "p50_ms": percentile(taken, 0.5),
        "p95_ms": percentile(taken, 0.95),
        "requests_per_s": rate,
        "cpu_ms_per_request": cpu,
    }


async def measure() -> dict[str, float]:
    """Both ways in turn against the same two servers, so that what else the machine does meets both."""
    found: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        trivial = start_triton(TRIVIAL_MODEL, load=("completion",), log=Path(folder) / "trivial.log")
        scripted = start_triton(
            REPOSITORY_ROOT / "tests/support/scripted_model", load=("completion",), log=Path(folder) / "scripted.log"
        )
        try:
            ways = {"per_request": StreamPerRequest(trivial.grpc), "per_pod": StreamPerPod(trivial.grpc)}
            slow = {"per_request": StreamPerRequest(scripted.grpc), "per_pod": StreamPerPod(scripted.grpc)}
            for way in (*ways.values(), *slow.values()):
                await serial(way.ask)
            for _ in range(RUNS):
                for name, way in ways.items():
                    for key, value in (await measure_once(way)).items():
                        found[f"{name}_{key}"].append(value)
            for _ in range(CANCELS):
                for name, way in slow.items():
                    found[f"{name}_cancel_to_free_ms"].append(await cancel_to_free(way))
            for way in (*ways.values(), *slow.values()):
                await way.close()
        finally:
            trivial.kill()
            scripted.kill()
    return {key: record.median(values) for key, values in found.items()}


if __name__ == "__main__":
    import uvloop

    record.write("router_streams", uvloop.run(measure()))
