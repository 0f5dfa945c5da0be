"""The router on a core of its own before a real Triton with the trivial model: rate, added latency, cancel, memory.

Goals: 1,000 requests/s; p95 at most 2 ms above a bare Triton call; a client's disconnect frees its slot in one token
(1 ms here) and 10 ms; a pod that stops answering is left out within a second; 100 MB RSS. Triton and the client share
the other core, so the measured rate is theirs too: ``core_requests_per_s`` is what the router's processor time allows.
What the router adds is measured with a client that writes bytes made ahead, each request next to a bare one, without
garbage collection in between: a general HTTP client would add half a millisecond of its own.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import record
import uvloop
from hotstart.exchange.client import ExchangeClient
from hotstart.exchange.messages import Endpoint, ModelRoute, RouterReport, RouterRequest
from hotstart.exchange.signing import make_jwks, make_signing_key
from router_streams import Ask, StreamPerPod, percentile

from tests.support.scripts import script
from tests.support.triton import REPOSITORY_ROOT, TRIVIAL_MODEL, TritonServer, free_port, start_triton

RUNS = 5
SERIAL = 300
STOPS = 5  # times that a pod is stopped
PARALLEL = 2000
CONCURRENCY = 32
TICKS = os.sysconf("SC_CLK_TCK")


class RouterProcess:
    """``hotstart-router`` pinned to one core, told its routes as by the operator."""

    def __init__(self, folder: Path, core: int) -> None:
        self._key = make_signing_key()
        keys = folder / "jwks.json"
        keys.write_text(make_jwks((self._key,)))
        self.port, self.exchange_port = free_port(), free_port()
        ports = ("--port", str(self.port), "--exchange-port", str(self.exchange_port), "--host", "127.0.0.1")
        program = (sys.executable, "-m", "hotstart.router.cli", *ports, "--keys-file", str(keys), "--drain-delay", "0")
        environment = {**os.environ, "POD_UID": "bench", "HOTSTART_ROUTER_LOG_LEVEL": "WARNING"}
        self.process = subprocess.Popen(("taskset", "-c", str(core), *program), env=environment)

    async def tell(self, addresses: dict[str, tuple[str, int]]) -> None:
        """Gives it one pod a model, at that address and with that cap, and waits until it can be asked."""
        routes = tuple(
            ModelRoute(
                model=model,
                endpoints=(Endpoint(pod=model, address=address, cap=cap),),
                queue_deadline=30,
                max_new_tokens=10_000,
            )
            for model, (address, cap) in addresses.items()
        )
        async with aiohttp.ClientSession() as session:
            client = ExchangeClient(session=session, key=self._key, epoch=1)
            while True:
                try:
                    async with session.get(f"http://127.0.0.1:{self.port}/healthz"):
                        break
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0.05)
            request = RouterRequest(generation=1, routes=routes)
            await client.ask(f"127.0.0.1:{self.exchange_port}", "bench", request, RouterReport)

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def rss_megabytes(self) -> float:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024 / 1e6

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


class Client:
    """Completions over HTTP; a status other than 200 ends the benchmark."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def ask(self, _: str, model: str = "bench/trivial", **body: Any) -> None:
        asked = {"model": model, "prompt": "def f(x):", "max_tokens": 16, **body}
        async with self._session.post("/v1/completions", json=asked) as response:
            answer = await response.read()
            if response.status != 200:
                raise RuntimeError(f"the router answered {response.status}: {answer.decode()}")


class LeanClient(asyncio.Protocol):
    """The same completion again and again on one connection, at next to no cost to the client."""

    def __init__(self) -> None:
        body = json.dumps({"model": "bench/trivial", "prompt": "def f(x):", "max_tokens": 16}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        self._request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        self._came = b""

    async def connect(self, port: int) -> None:
        self._transport, _ = await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", port)

    def data_received(self, data: bytes) -> None:
        self._came += data
        head, found, body = self._came.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        if found and length and len(body) == int(length.group(1)):
            self._answer.set_result(head)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._answer.done():
            self._answer.set_exception(error or ConnectionError("the router hung up"))

    async def ask(self, _: str) -> None:
        self._came, self._answer = b"", asyncio.get_running_loop().create_future()
        self._transport.write(self._request)
        head = await self._answer
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"the router answered {head.decode()}")

    def close(self) -> None:
        self._transport.abort()


async def in_turn(*ways: Ask) -> list[list[float]]:
    """Milliseconds of SERIAL requests of each way, one request of each after the other."""
    taken: list[list[float]] = [[] for _ in ways]
    gc.collect()
    gc.disable()
    for number in range(SERIAL):
        for ask, times in zip(ways, taken, strict=True):
            began = time.perf_counter()
            await ask(f"turn-{number}")
            times.append((time.perf_counter() - began) * 1000)
    gc.enable()
    return taken


async def measure_added(client: LeanClient, bare: StreamPerPod) -> dict[str, float]:
    """Serial latency through the router and of a bare call."""
    added: dict[str, list[float]] = {key: [] for key in ("p50", "p95", "bare_p50", "bare_p95")}
    await in_turn(client.ask, bare.ask)  # warm
    for _ in range(RUNS):
        through, alone = await in_turn(client.ask, bare.ask)
        for key, share in (("p50", 0.5), ("p95", 0.95)):
            added[f"bare_{key}"].append(percentile(alone, share))
            added[key].append(percentile(through, share) - percentile(alone, share))
    medians = {key: record.median(values) for key, values in added.items()}
    return {
        "added_p50_ms": medians["p50"],
        "added_p95_ms": medians["p95"],
        "bare_p50_ms": medians["bare_p50"],
        "bare_p95_ms": medians["bare_p95"],
    }


async def measure_rate(client: Client, router: RouterProcess) -> dict[str, float]:
    """Requests a second with CONCURRENCY at once, and what they cost the router's core."""
    rates, costs, shares = [], [], []
    for _ in range(RUNS):
        names = iter(range(PARALLEL))

        async def work(names: Any = names) -> None:
            for _ in names:
                await client.ask("")

        began, cpu = time.perf_counter(), router.cpu_seconds()
        await asyncio.gather(*(work() for _ in range(CONCURRENCY)))
        passed, spent = time.perf_counter() - began, router.cpu_seconds() - cpu
        rates.append(PARALLEL / passed)
        costs.append(spent * 1000 / PARALLEL)
        shares.append(spent / passed)
    return {
        "requests_per_s": record.median(rates),
        "router_cpu_ms_per_request": record.median(costs),
        "router_core_share": record.median(shares),
        "core_requests_per_s": round(1000 / statistics.median(costs)),
    }


async def measure_disconnect(client: Client) -> dict[str, float]:
    """From one client's disconnect until the next client, which waits for the same slot, has its answer."""
    taken: dict[bool, list[float]] = {False: [], True: []}
    for stream, times in taken.items():
        for _ in range(15):
            long = script(steps=100_000, step_ms=1)
            first = asyncio.create_task(client.ask("", model="bench/scripted", prompt=long, stream=stream))
            await asyncio.sleep(0.05)
            second = asyncio.create_task(client.ask("", model="bench/scripted"))
            await asyncio.sleep(0.05)
            began = time.perf_counter()
            first.cancel()
            await second
            times.append((time.perf_counter() - began) * 1000)
    return {
        "disconnect_to_next_answer_ms": record.median(taken[False]),
        "disconnect_to_next_answer_streaming_ms": record.median(taken[True]),
    }


async def measure_left_out(session: aiohttp.ClientSession, pod: TritonServer) -> dict[str, float]:
    """From the moment in which a pod stops (SIGSTOP) until it gets no request any more, by the router's own metrics."""
    times = []
    for number in range(STOPS):
        await until_answering(session, True)
        await asyncio.sleep(0.37 * number)  # at another moment between two checks each time
        os.killpg(pod.process.pid, signal.SIGSTOP)
        try:
            began = time.perf_counter()
            await until_answering(session, False)
            times.append((time.perf_counter() - began) * 1000)
        finally:
            os.killpg(pod.process.pid, signal.SIGCONT)
    return {"stopped_pod_left_out_ms": record.median(times), "stopped_pod_left_out_worst_ms": round(max(times), 1)}


async def until_answering(session: aiohttp.ClientSession, wanted: bool) -> None:
    """Waits until the router calls the scripted pod answering, or not."""
    line = f'hotstart_router_pod_answering{{model="bench/scripted",pod="bench/scripted"}} {float(wanted)}'
    while True:
        async with session.get("/metrics") as response:
            if line in (await response.text()).splitlines():
                return
        await asyncio.sleep(0.005)


async def measure() -> dict[str, float]:
    """All of it, against one router."""
    cores = sorted(os.sched_getaffinity(0))
    own, shared = cores[0], cores[1:] or cores
    os.sched_setaffinity(0, shared)
    prefix = ("taskset", "-c", ",".join(map(str, shared)))
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        trivial = start_triton(TRIVIAL_MODEL, load=("completion",), log=folder / "trivial.log", prefix=prefix)
        stack.callback(trivial.kill)
        repository = REPOSITORY_ROOT / "tests/support/scripted_model"
        scripted = start_triton(repository, load=("completion",), log=folder / "scripted.log", prefix=prefix)
        stack.callback(scripted.kill)
        router = RouterProcess(folder, own)
        stack.callback(router.stop)
        await router.tell({"bench/trivial": (trivial.grpc, 64), "bench/scripted": (scripted.grpc, 1)})
        session = aiohttp.ClientSession(
            f"http://127.0.0.1:{router.port}", connector=aiohttp.TCPConnector(limit=CONCURRENCY)
        )
        await stack.enter_async_context(session)
        client, lean, bare = Client(session), LeanClient(), StreamPerPod(trivial.grpc)
        await lean.connect(router.port)
        stack.callback(lean.close)
        stack.push_async_callback(bare.close)
        await client.ask("")
        rss_idle = router.rss_megabytes()
        found = {**await measure_added(lean, bare), **await measure_rate(client, router)}
        found |= await measure_disconnect(client)
        found |= await measure_left_out(session, scripted)
        return {**found, "rss_idle_mb": round(rss_idle, 1), "rss_mb": round(router.rss_megabytes(), 1)}


if __name__ == "__main__":
    goals = {
        "added_p95_ms": record.at_most(2),
        "core_requests_per_s": record.at_least(1000),
        "disconnect_to_next_answer_ms": record.at_most(11),
        "stopped_pod_left_out_ms": record.at_most(1000),
        "rss_mb": record.at_most(100),
    }
    record.write("router", {**uvloop.run(measure()), "concurrency": CONCURRENCY, "runs": RUNS}, goals)
