"""A router in the test's own process with its real servers, and a stand-in for the operator that signs messages."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
from hotstart.exchange.client import ExchangeClient
from hotstart.exchange.messages import Endpoint, ModelRoute, RouterReport, RouterRequest
from hotstart.exchange.signing import make_jwks, make_signing_key
from hotstart.router.program import Program
from hotstart.router.settings import Settings, parse_settings

from tests.support.fake_triton import FakeTriton

MODEL = "shop/coder"
UID = "router-uid"
KEY = make_signing_key()


async def until(true: Callable[[], object], seconds: float = 20.0) -> None:
    """Waits until ``true()``; fails the test when it does not come."""
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110 - what it waits for has no event
            await asyncio.sleep(0.005)


def make_route(*fakes: FakeTriton | str, cap: int = 4, model: str = MODEL, **values: Any) -> ModelRoute:
    """A route to these pods, named pod-0 and so on by their order, or by their address where they have moved."""
    endpoints = tuple(
        Endpoint(pod=f"pod-{address.rpartition(':')[2]}", address=address, cap=cap)
        for address in (fake if isinstance(fake, str) else fake.address for fake in fakes)
    )
    return ModelRoute(model=model, endpoints=endpoints, **values)


def pod_name(fake: FakeTriton) -> str:
    return f"pod-{fake.address.rpartition(':')[2]}"


@dataclass
class Operator:
    """Sends routes to one router, as the operator does."""

    program: Program
    client: ExchangeClient
    generation: int = 0
    reports: list[RouterReport] = field(default_factory=list)

    async def send(self, *routes: ModelRoute, cursor: int = 0) -> RouterReport:
        self.generation += 1
        return await self.exchange(RouterRequest(generation=self.generation, routes=routes, cursor=cursor))

    async def exchange(self, request: RouterRequest) -> RouterReport:
        address = f"127.0.0.1:{self.program.exchange_port}"
        return await self.client.ask(address, UID, request, RouterReport)


@dataclass
class Bench:
    """One router under test."""

    program: Program
    operator: Operator
    http: aiohttp.ClientSession

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.program.port}"

    async def serve(self, *fakes: FakeTriton | str, cap: int = 4, **values: Any) -> None:
        """Routes MODEL to ``fakes`` and waits until they all answer."""
        await self.operator.send(make_route(*fakes, cap=cap, **values))
        await self.answering(len(fakes))

    async def answering(self, pods: int) -> None:
        await until(lambda: sum(pod.answering for pod in self.lane.pods.values()) == pods)

    @property
    def lane(self) -> Any:
        return self.program.router.lanes[MODEL]

    def post(self, **body: Any) -> Any:
        return self.http.post("/v1/completions", json={"model": MODEL, "prompt": "def f(x):", **body})


def make_settings(folder: Path, **changes: Any) -> Settings:
    keys = folder / "jwks.json"
    keys.write_text(make_jwks((KEY,)))
    flags = [
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--exchange-port",
        "0",
        "--keys-file",
        str(keys),
        "--drain-delay",
        "0",
    ]
    return replace(parse_settings(flags, {"POD_UID": UID}), **changes)


@contextlib.asynccontextmanager
async def running_router(settings: Settings) -> AsyncIterator[Bench]:
    program = Program(settings)
    await program.start()
    async with (
        aiohttp.ClientSession(f"http://127.0.0.1:{program.port}") as http,
        aiohttp.ClientSession() as operator_session,
    ):
        client = ExchangeClient(session=operator_session, key=KEY, epoch=1)
        yield Bench(program, Operator(program, client), http)
        await program.close()


StartFake = Callable[[], Awaitable[FakeTriton]]
