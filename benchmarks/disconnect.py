"""From a client's disconnect until its slot is free, through router and completion model (goal: one token and 10 ms).

A small real engine with one worker in a real Triton, a real router. A long completion holds the only slot, another
waits for it; the first client hangs up, and the time counts until the second has its one token. What such an answer
takes alone is taken off.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import record

from router import Client, RouterProcess
from tests.support.pod import make_serving, write_repository
from tests.support.tiny_checkpoint import TinyShape
from tests.support.tiny_engine import write_tiny_engine
from tests.support.triton import start_triton

MODEL = "bench/model"
ROUNDS = 15
TOKENS = 400
SHAPE = TinyShape(layers=8, width=512, intermediate=2048, heads=8, kv_heads=8, context=512)  # some ms a token


async def measure() -> dict[str, float]:
    """Milliseconds: of a token, and of a disconnect, for whole answers and for streams."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engine = write_tiny_engine(folder / "engine", shape=SHAPE)
        serving = make_serving(inter_threads=1, max_new_tokens=TOKENS)
        repository = write_repository(folder / "repository", engine, serving)
        triton = start_triton(repository, load=("completion",), log=folder / "triton.log")
        stack.callback(triton.kill)
        router = RouterProcess(folder, 0)
        stack.callback(router.stop)
        await router.tell({MODEL: (triton.grpc, 1)})
        session = await stack.enter_async_context(aiohttp.ClientSession(f"http://127.0.0.1:{router.port}"))
        client = Client(session)
        await client.ask("", model=MODEL, max_tokens=1)
        token_ms = await timed(client.ask("", model=MODEL, max_tokens=TOKENS)) / TOKENS
        alone = [await timed(client.ask("", model=MODEL, max_tokens=1)) for _ in range(ROUNDS)]
        found = {"token_ms": round(token_ms, 3), "answer_alone_ms": record.median(alone)}
        for stream, name in ((False, "disconnect_ms"), (True, "disconnect_streaming_ms")):
            taken = record.median([await disconnect(client, stream=stream) for _ in range(ROUNDS)])
            found[name] = round(taken - found["answer_alone_ms"], 3)
            found[f"{name[:-3]}_less_a_token_ms"] = round(found[name] - token_ms, 3)
        return found


async def timed(work: Awaitable[None]) -> float:
    """Milliseconds that it takes."""
    began = time.perf_counter()
    await work
    return (time.perf_counter() - began) * 1000


async def disconnect(client: Client, *, stream: bool) -> float:
    """Milliseconds from one client's leaving to the other's answer."""
    first = asyncio.create_task(client.ask("", model=MODEL, max_tokens=TOKENS, stream=stream))
    await asyncio.sleep(0.1)
    second = asyncio.create_task(client.ask("", model=MODEL, max_tokens=1))
    await asyncio.sleep(0.05)
    if first.done():
        raise RuntimeError("the completion ended before its client could leave: the engine is too fast for this")
    first.cancel()
    return await timed(second)


if __name__ == "__main__":
    goal = record.at_most(10)
    goals = {"disconnect_less_a_token_ms": goal, "disconnect_streaming_less_a_token_ms": goal}
    record.write("disconnect", {**asyncio.run(measure()), "rounds": ROUNDS}, goals)
