"""A completion server whose every manner a test can choose: slow, failing, hanging up, stalling."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.support.ports import free_port as find_free_port

MODEL = "team-a/tiny"
Behaviour = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


def completion(text: str = "x", tokens: int = 3) -> dict[str, Any]:
    return {
        "object": "text_completion",
        "choices": [{"index": 0, "text": text, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1},
    }


def error_response(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "type": "test", "code": None}}, status=status)


async def answer_at_once(_request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
    return web.json_response(completion())


@dataclass
class FakeServer:
    """`behave` answers each POST /v1/completions; `bodies` holds what was asked, `aborted` counts hang-ups seen."""

    url: str = ""
    behave: Behaviour = answer_at_once
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    aborted: int = 0
    models: tuple[str, ...] = (MODEL,)
    models_status: int = 200
    models_headers: dict[str, str] = field(default_factory=dict)
    received: asyncio.Event = field(default_factory=asyncio.Event)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        self.received.set()
        try:
            return await self.behave(request, body)
        except asyncio.CancelledError:
            self.aborted += 1
            raise

    async def list_models(self, _request: web.Request) -> web.Response:
        data = [{"id": name, "object": "model"} for name in self.models]
        body = {"object": "list", "data": data}
        return web.json_response(body, status=self.models_status, headers=self.models_headers)


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    fake = FakeServer()
    app = web.Application()
    app.router.add_post("/v1/completions", fake.complete)
    app.router.add_get("/v1/models", fake.list_models)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield fake
    await runner.cleanup()


@pytest.fixture
def trace_file() -> Path:
    return Path(__file__).parent / "data" / "trace.csv"


async def stream_events(request: web.Request, events: list[dict[str, Any]], *, done: bool = True) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for event in events:
        await response.write(f"data: {json.dumps(event)}\n\n".encode())
    if done:
        await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


@pytest.fixture
def free_port() -> int:
    """A loopback port on which nothing listens."""
    return find_free_port()
