"""The exchange beside the work of a Job: the operator asks how far it is, and may end it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from hotstart.engines.builder.settings import BuildSettings
from hotstart.engines.builder.state import BuildState
from hotstart.engines.errors import Reason, Terminal
from hotstart.engines.runtimes.tensorrt_llm.tool import kill_running
from hotstart.exchange.messages import BuildRequest
from hotstart.exchange.server import KeySet, add_exchange, make_app

log = logging.getLogger(__name__)
SHUTDOWN_SECONDS = 2.0

#: Called with the port once the exchange is served.
OnListening = Callable[[int], None]


@asynccontextmanager
async def served(
    settings: BuildSettings, state: BuildState, on_listening: OnListening | None = None
) -> AsyncIterator[None]:
    """Answers the operator with ``state`` until the context is left."""
    app = make_app()

    async def healthy(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    add_exchange(
        app, keys=KeySet(settings.keys_file), audience=settings.pod_uid, request_type=BuildRequest, answer=state.answer
    )
    app.router.add_get("/healthz", healthy)
    app.router.add_get("/readyz", healthy)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
    await runner.setup()
    try:
        await web.TCPSite(runner, settings.host, settings.port).start()
        port = int(runner.addresses[0][1])
        log.info("exchange served port=%d", port)
        if on_listening is not None:
            on_listening(port)
        yield
    finally:
        await runner.cleanup()


async def run_until_cancelled(work: Coroutine[Any, Any, None], state: BuildState) -> BaseException | None:
    """What the work raised, or that the operator cancelled it; None where it came to its end.

    What blocks in a thread of cancelled work goes on until its process ends.
    """
    running = asyncio.create_task(work)
    cancelled = asyncio.create_task(state.cancelled.wait())
    await asyncio.wait({running, cancelled}, return_when=asyncio.FIRST_COMPLETED)
    if not running.done():
        running.cancel()
        kill_running()
        return Terminal(Reason.BUILD_FAILED, "The operator cancelled the build.")
    cancelled.cancel()
    return running.exception()
