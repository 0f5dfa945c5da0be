"""The exchange with pod agents, routers and builders: implements the port Agents.

An agent that is silent is no error here: its silence is a fact, and pods start and end all the time.
"""

from __future__ import annotations

import logging
import math
import time
from typing import TypeVar

from hotstart.exchange.client import ExchangeClient, ExchangeFailed
from hotstart.exchange.messages import (
    BuildReport,
    BuildRequest,
    PodReport,
    PodRequest,
    RouterReport,
    RouterRequest,
)
from hotstart.operator.adapters import metrics
from pydantic import BaseModel

log = logging.getLogger(__name__)
SAY_AGAIN_SECONDS = 600.0
ReportT = TypeVar("ReportT", bound=BaseModel)


class ExchangeAgents:
    """Asks by signed HTTP."""

    def __init__(self, client: ExchangeClient) -> None:
        self._client = client
        self._silent: dict[str, float] = {}  # by UID: when its silence was last said, on the monotonic clock

    async def ask_pod(self, address: str, uid: str, request: PodRequest) -> PodReport | None:
        """One message to a pod agent."""
        return await self._ask("pod", address, uid, request, PodReport)

    async def ask_router(self, address: str, uid: str, request: RouterRequest) -> RouterReport | None:
        """One message to a router."""
        return await self._ask("router", address, uid, request, RouterReport)

    async def ask_builder(self, address: str, uid: str, request: BuildRequest) -> BuildReport | None:
        """One message to a builder."""
        return await self._ask("builder", address, uid, request, BuildReport)

    async def _ask(
        self, kind: str, address: str, uid: str, request: BaseModel, report: type[ReportT]
    ) -> ReportT | None:
        try:
            found = await self._client.ask(address, uid, request, report)
        except ExchangeFailed as failure:
            metrics.EXCHANGES.labels(kind, "failed").inc()
            now = time.monotonic()
            if now - self._silent.get(uid, -math.inf) >= SAY_AGAIN_SECONDS:
                self._silent = {known: at for known, at in self._silent.items() if now - at < SAY_AGAIN_SECONDS}
                self._silent[uid] = now
                log.info("agent does not answer kind=%s address=%s cause=%s", kind, address, failure)
            return None
        metrics.EXCHANGES.labels(kind, "answered").inc()
        if self._silent.pop(uid, None) is not None:
            log.info("agent answers kind=%s address=%s", kind, address)
        return found
