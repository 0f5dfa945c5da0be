"""The agent's side of Triton's HTTP API: liveness, the repository API with the pod's key, and generate for the warm-up.

"Not there" is an answer here, not an exception: Triton may be starting, or have gone.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import aiohttp
from hotstart.engines.triton.completion import names
from hotstart.engines.triton.server import KEY_HEADER
from hotstart.exchange.names import TRITON_MODEL

LIVE_POLL_SECONDS = 0.05
PROBE = aiohttp.ClientTimeout(total=1.0)
LOAD = aiohttp.ClientTimeout(total=300.0)
GENERATE = aiohttp.ClientTimeout(total=60.0)


def make_session() -> aiohttp.ClientSession:
    """A session for Triton alone: a connection a request.

    A Triton that was told to end waits for every open HTTP connection, an idle one too, until its exit timeout has
    passed, and then ends with code 1 (2.51, measured).
    """
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True))


class TritonGone(Exception):
    """Triton closed the connection, or is not there."""


class TritonSlow(Exception):
    """Triton is there and did not answer in time; it may go on with what it was asked."""


class TritonRefused(Exception):
    """Triton answered, and said no; the text is its own."""


@dataclass(frozen=True)
class Counts:
    """The completion model's own numbers: requests that run and wait now, and those answered since it was loaded."""

    running: int = 0
    waiting: int = 0
    completed: int = 0


class TritonClient:
    """One Triton at ``http`` (host:port), whose metrics are at ``metrics``."""

    def __init__(self, session: aiohttp.ClientSession, *, http: str, metrics: str, key: str) -> None:
        self._session = session
        self._base = f"http://{http}/v2"
        self._metrics = f"http://{metrics}/metrics"
        self._headers = {KEY_HEADER: key}

    async def is_live(self) -> bool:
        """Whether the server answers."""
        return bool(await self._answers("/health/live"))

    async def wait_live(self) -> None:
        """Returns once the server answers."""
        while not await self.is_live():  # noqa: ASYNC110  # another process has no event for it
            await asyncio.sleep(LIVE_POLL_SECONDS)

    async def is_ready(self, model: str = TRITON_MODEL) -> bool | None:
        """Whether the model is loaded and serves; None where Triton is there and says nothing."""
        return await self._answers(f"/models/{model}/ready")

    async def load(self, model: str = TRITON_MODEL) -> None:
        """Loads the model, anew if its files have changed.

        Raises:
            TritonGone, TritonSlow, TritonRefused: it went away meanwhile; it takes too long; it cannot load the model.
        """
        await self._post(f"/repository/models/{model}/load", {}, LOAD)

    async def parameters(self, model: str = TRITON_MODEL) -> dict[str, str] | None:
        """The parameters of the loaded model's configuration; None where none is loaded."""
        url = f"{self._base}/models/{model}/config"
        try:
            async with self._session.get(url, headers=self._headers, timeout=PROBE) as response:
                if response.status != 200:
                    return None
                config = await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError):
            return None
        return {name: entry["string_value"] for name, entry in config.get("parameters", {}).items()}

    async def generate(
        self, *, request_id: str, prompt: str, suffix: str, options: dict[str, Any]
    ) -> tuple[str, dict[str, Any]]:
        """One completion: its text and details.

        Raises:
            TritonGone, TritonSlow, TritonRefused: it went away meanwhile; takes too long; the model refuses or fails.
        """
        body = {"id": request_id, "prompt": prompt, "suffix": suffix, "options": json.dumps(options)}
        answer = await self._post(f"/models/{TRITON_MODEL}/generate", body, GENERATE)
        return answer["text"], json.loads(answer["details"])

    async def counts(self) -> Counts | None:
        """The completion model's numbers; None where Triton does not answer."""
        try:
            async with self._session.get(self._metrics, timeout=PROBE) as response:
                return parse_counts(await response.text())
        except (aiohttp.ClientError, TimeoutError):
            return None

    async def _answers(self, path: str) -> bool | None:
        try:
            async with self._session.get(self._base + path, timeout=PROBE) as response:
                return response.status == 200
        except TimeoutError:
            return None
        except aiohttp.ClientError:
            return False

    async def _post(self, path: str, body: dict[str, Any], limit: aiohttp.ClientTimeout) -> dict[str, Any]:
        try:
            async with self._session.post(
                self._base + path, json=body, headers=self._headers, timeout=limit
            ) as response:
                text = await response.text()
        except TimeoutError as error:
            raise TritonSlow(f"no answer in {limit.total:.0f} s") from error
        except aiohttp.ClientError as error:
            raise TritonGone(f"{path}: {error!r}") from error
        answer: dict[str, Any] = json.loads(text) if text else {}
        if response.status != 200 or "error" in answer:  # a decoupled model's error comes with status 200 too
            raise TritonRefused(str(answer.get("error", text)))
        return answer


def parse_counts(exposition: str) -> Counts:
    """The numbers in Triton's metrics; zero for those not there. Pure."""
    sums: dict[str, float] = {}
    for line in exposition.splitlines():
        if line.startswith(names.METRIC_PREFIX):
            name, _, value = line.rpartition(" ")
            metric = name.partition("{")[0]
            sums[metric] = sums.get(metric, 0.0) + float(value)
    return Counts(
        running=int(sums.get(names.RUNNING, 0)),
        waiting=int(sums.get(names.WAITING, 0)),
        completed=int(sums.get(names.REQUESTS, 0)),
    )
