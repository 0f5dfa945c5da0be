"""The agent's side of the exchange: an aiohttp route that verifies a request and answers with a report.

Used by the pod agent, the router and the builder. The JWKS is read from its mounted file again when the file changes,
so a rotated key needs no restart.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web
from hotstart.exchange.names import EXCHANGE_PATH
from hotstart.exchange.signing import RefusedMessage, Stamp, verify
from pydantic import BaseModel, ValidationError

log = logging.getLogger(__name__)
MAX_BODY_BYTES = 8 * 1024 * 1024


class KeySet:
    """The operator's public keys, from a file that Kubernetes may replace at any time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mtime_ns = -1
        self._keys: dict[str, Any] = {"keys": []}

    def current(self) -> dict[str, Any]:
        """The JWKS as it stands now; the last good one while the file is missing or half written."""
        try:
            stat = self._path.stat()
            if stat.st_mtime_ns != self._mtime_ns:
                self._keys = json.loads(self._path.read_text())
                self._mtime_ns = stat.st_mtime_ns
        except (OSError, ValueError) as error:
            log.warning("exchange keys unreadable path=%s error=%s", self._path, error)
        return self._keys


def add_exchange(
    app: web.Application,
    *,
    keys: KeySet,
    audience: str,
    request_type: type[BaseModel],
    answer: Callable[[Any], Awaitable[BaseModel]],
    clock: Callable[[], float] = time.time,
) -> None:
    """Adds the exchange's route to ``app``; ``answer`` gets a ``request_type`` and returns the report."""
    newest = Stamp(-1, -1)

    async def handle(request: web.Request) -> web.Response:
        nonlocal newest
        body = await request.read()
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        try:
            newest = verify(token, body, jwks=keys.current(), audience=audience, newest=newest, now=clock())
        except RefusedMessage as refusal:
            log.warning("exchange message refused reason=%s", refusal)
            return web.json_response({"error": str(refusal)}, status=401)
        try:
            message = request_type.model_validate_json(body)
        except ValidationError as error:
            return web.json_response({"error": str(error)}, status=400)
        report = await answer(message)
        return web.Response(body=report.model_dump_json().encode(), content_type="application/json")

    app.router.add_post(EXCHANGE_PATH, handle)


def make_app() -> web.Application:
    """An application with the exchange's limits, for an agent that has none yet."""
    return web.Application(client_max_size=MAX_BODY_BYTES)
