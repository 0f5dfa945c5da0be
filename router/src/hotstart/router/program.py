"""The router as a process: starts the servers, and drains on SIGTERM without losing a request."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable

from aiohttp import web
from hotstart.exchange.server import KeySet
from hotstart.router.completions import Completions
from hotstart.router.core import Router
from hotstart.router.server import make_api, make_exchange
from hotstart.router.settings import Settings
from hotstart.router.state_file import load_routes

log = logging.getLogger(__name__)


class Program:
    """``start``, then ``drain``; ``port`` and ``exchange_port`` are known after the start."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.router = Router(pod_uid=settings.pod_uid, state=settings.state)
        self.completions = Completions(self.router, request_timeout=settings.request_timeout)
        self.port = 0
        self.exchange_port = 0
        self._api: web.AppRunner | None = None
        self._exchange: web.AppRunner | None = None
        self._api_site: web.TCPSite | None = None

    async def start(self) -> None:
        """Listens.

        Raises:
            OSError: a port is taken.
        """
        settings = self.settings
        saved = load_routes(settings.state) if settings.state is not None else None
        if saved is not None:
            self.router.apply(saved, save=False)
        api = make_api(self.router, self.completions, max_body_bytes=settings.max_body_bytes)
        self._api = web.AppRunner(api, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
        exchange = make_exchange(self.router, keys=KeySet(settings.keys_file), pod_uid=settings.pod_uid)
        self._exchange = web.AppRunner(exchange, access_log=None, shutdown_timeout=1.0)
        await self._api.setup()
        await self._exchange.setup()
        self._api_site = web.TCPSite(self._api, settings.host, settings.port, backlog=1024)
        await self._api_site.start()
        await web.TCPSite(self._exchange, settings.host, settings.exchange_port).start()
        self.port, self.exchange_port = self._api.addresses[0][1], self._exchange.addresses[0][1]
        log.info("router listens port=%d exchange_port=%d", self.port, self.exchange_port)

    @property
    def running(self) -> int:
        """Requests that clients wait for."""
        return self.router.turns

    async def drain(self) -> None:
        """Ends: not ready at once, accepts a little longer, finishes what runs, closes."""
        self.router.draining = True
        log.info("draining delay=%g running=%d", self.settings.drain_delay, self.running)
        await asyncio.sleep(self.settings.drain_delay)
        if self._api_site is not None:
            await self._api_site.stop()
        try:
            async with asyncio.timeout(self.settings.drain_timeout):
                await self.router.idle()
        except TimeoutError:
            log.warning("requests cut off at the end of the drain running=%d", self.running)
        await self.close()
        log.info("drained")

    async def close(self) -> None:
        """Ends all at once."""
        for runner in (self._api, self._exchange):
            if runner is not None:
                await runner.cleanup()
        await self.router.close()


async def run(settings: Settings, listening: Callable[[Program], None] | None = None) -> None:
    """The whole life of a router, until SIGTERM or SIGINT."""
    program = Program(settings)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await program.start()
    if listening is not None:
        listening(program)
    await stop.wait()
    await program.drain()
