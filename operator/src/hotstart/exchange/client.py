"""The operator's side of the exchange: signs a request, posts it, parses the report."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import TypeVar

import aiohttp
from hotstart.exchange.names import EXCHANGE_PATH
from hotstart.exchange.signing import SigningKey, Stamp, sign
from pydantic import BaseModel, ValidationError

ReportT = TypeVar("ReportT", bound=BaseModel)


class ExchangeFailed(Exception):
    """The agent did not answer, refused, or answered what is no report; the message says which."""


class ExchangeClient:
    """One a process. ``epoch`` is the number of transitions of the operator's Lease."""

    def __init__(
        self,
        *,
        session: aiohttp.ClientSession,
        key: SigningKey,
        epoch: int,
        timeout: float = 2.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._session = session
        self._key = key
        self._epoch = epoch
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._clock = clock
        self._sequence = itertools.count(1)

    def sign_with(self, key: SigningKey) -> None:
        """From the next message on, this key signs."""
        self._key = key

    async def ask(self, address: str, audience: str, request: BaseModel, report: type[ReportT]) -> ReportT:
        """The report of the agent at ``host:port`` whose pod has the UID ``audience``.

        Raises:
            ExchangeFailed: the agent is silent, refuses, or answers nonsense.
        """
        body = request.model_dump_json().encode()
        stamp = Stamp(self._epoch, next(self._sequence))
        token = sign(body, key=self._key, audience=audience, stamp=stamp, now=self._clock())
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        url = f"http://{address}{EXCHANGE_PATH}"
        try:
            async with self._session.post(url, data=body, headers=headers, timeout=self._timeout) as response:
                answer = await response.read()
                if response.status != 200:
                    raise ExchangeFailed(
                        f"{address} answered {response.status}: {answer[:200].decode(errors='replace')}"
                    )
            return report.model_validate_json(answer)
        except (aiohttp.ClientError, TimeoutError, ValidationError) as error:
            raise ExchangeFailed(f"{address}: {type(error).__name__}: {error}") from error
