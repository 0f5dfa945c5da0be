"""What the agent serves on its port: the exchange, the probes and its metrics."""

from __future__ import annotations

import asyncio
from pathlib import Path

from aiohttp import web
from hotstart.engines.pod_agent.agent import Agent
from hotstart.engines.pod_agent.exposition import make_exposition
from hotstart.exchange.messages import PodRequest, PodState
from hotstart.exchange.server import KeySet, add_exchange, make_app


def make_service(agent: Agent, running: asyncio.Task[None], *, uid: str, keys: Path) -> web.Application:
    """The application. ``running`` is the agent's own task: a dead one makes the pod unhealthy."""

    async def healthz(request: web.Request) -> web.Response:
        return web.Response(status=503 if running.done() else 200, text=agent.state.value)

    async def readyz(request: web.Request) -> web.Response:
        return web.Response(status=200 if agent.state is PodState.READY else 503, text=agent.state.value)

    async def metrics(request: web.Request) -> web.Response:
        text = make_exposition(await agent.report())
        return web.Response(text=text, content_type="text/plain", charset="utf-8")

    app = make_app()
    add_exchange(app, keys=KeySet(keys), audience=uid, request_type=PodRequest, answer=agent.take)
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    return app
