"""One pod of a lane: its load, its health and its stream. Effects only; choices are in ``balance`` and ``health``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from hotstart.exchange.messages import Endpoint
from hotstart.router.call import Call
from hotstart.router.health import CHECK_INTERVAL_SECONDS, CHECK_TIMEOUT_SECONDS, Check, Health, PodHealth, next_health
from hotstart.router.pod_stream import PodStream

log = logging.getLogger(__name__)

CANCEL_GRACE_SECONDS = 10.0  # a cancelled request that the pod never ends frees its slot after this


class Pod:
    """A pod while the router knows it; it satisfies ``balance.Load``.

    Args:
        changed: called when a slot may be free, or the pod answers or stops answering.
    """

    def __init__(self, endpoint: Endpoint, changed: Callable[[], None]) -> None:
        self.pod = endpoint.pod
        self.address = endpoint.address
        self.cap = endpoint.cap
        self.requests = 0
        self.work = 0
        self.picked = 0
        self.retiring = False  # out of the routes: finishes what it has
        self.health = PodHealth()
        self._changed = changed
        self._stream = PodStream(endpoint.address, self._stream_broke)
        self._checks = asyncio.create_task(self._check())

    @property
    def answering(self) -> bool:
        return self.health.answering and not self.retiring

    def send(self, call: Call) -> None:
        self._stream.send(call)

    def cancel(self, call: Call) -> None:
        """Ends a request whose answer nobody waits for; its slot is free when the pod says so."""
        if not call.over:
            self._stream.cancel(call)
            asyncio.get_running_loop().call_later(CANCEL_GRACE_SECONDS, self._give_up, call)

    async def close(self) -> None:
        self._checks.cancel()
        await asyncio.gather(self._checks, return_exceptions=True)
        await self._stream.close()

    def _give_up(self, call: Call) -> None:
        if not call.over:
            log.warning("cancelled request did not end pod=%s request=%s", self.pod, call.id)
            self._stream.forget(call)

    def _stream_broke(self) -> None:
        self._observe(Check.NO_ANSWER)

    def _observe(self, check: Check) -> None:
        before, self.health = self.health, next_health(self.health, check)
        if check is not Check.READY:
            self._stream.rest()
        if before.state is self.health.state:
            return
        log.info("pod health pod=%s address=%s from=%s to=%s", self.pod, self.address, before.state, self.health.state)
        if self.health.state is Health.LOST:
            self._stream.abort("the pod stopped answering")
        self._changed()

    async def _check(self) -> None:
        while True:
            self._observe(await self._stream.check(CHECK_TIMEOUT_SECONDS))
            await asyncio.sleep(CHECK_INTERVAL_SECONDS)
