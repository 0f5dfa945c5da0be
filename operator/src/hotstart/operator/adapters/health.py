"""The operator's own endpoint: /metrics, /healthz and /readyz, also in the replica that stands by."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest


async def serve_health(port: int, is_alive: Callable[[], bool], is_ready: Callable[[], bool]) -> web.AppRunner:
    """Starts to serve on all addresses; the caller cleans the runner up.

    Raises:
        OSError: the port is taken.
    """
    app = web.Application()

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    def make_check(check: Callable[[], bool]) -> Callable[[web.Request], object]:
        async def answer(request: web.Request) -> web.Response:
            return web.Response(text="ok\n") if check() else web.Response(status=503, text="not yet\n")

        return answer

    app.router.add_get("/metrics", metrics)
    app.router.add_get("/healthz", make_check(is_alive))  # type: ignore[arg-type]
    app.router.add_get("/readyz", make_check(is_ready))  # type: ignore[arg-type]
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, None, port).start()
    return runner
