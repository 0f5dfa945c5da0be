"""One request on its way through a pod's stream: what the stream puts in, and what the request's task takes out."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from hotstart.router.wire import Piece, Refusal


class PodLost(Exception):
    """The pod went away with the request on it; where no byte has been sent, another pod may serve it."""


class Refused(Exception):
    """The pod answered with an error instead of a completion."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class Call:
    """Pieces in order, then the end.

    Args:
        message: the ``ModelInferRequest``.
        ended: called once, when the pod holds the request no longer: after the last message, a refusal or its loss. A
            request whose client has left still holds its slot until then.
    """

    def __init__(self, request_id: str, message: Any, ended: Callable[[], None]) -> None:
        self.id = request_id
        self.message = message
        self.over = False
        self._ended = ended
        self._arrived: deque[Piece | Exception] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: Piece | Refusal) -> None:
        """A message from the pod; the stream calls it. Nothing follows the last one."""
        if self.over:
            return
        last = isinstance(item, Refusal) or item.final
        self._put(Refused(item) if isinstance(item, Refusal) else item, last)

    def lose(self, why: str) -> None:
        """The pod is gone."""
        if not self.over:
            self._put(PodLost(why), True)

    def interrupt(self, error: Exception) -> None:
        """``next`` raises ``error`` after what has arrived; the pod still holds the request."""
        if not self.over:
            self._put(error, False)

    def _put(self, item: Piece | Exception, last: bool) -> None:
        self._arrived.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if last:
            self.over = True
            self._ended()

    async def next(self) -> Piece:
        """The next piece; the last has ``final``.

        Raises:
            PodLost: the pod went away.
            Refused: the pod answered with an error.
            Exception: what ``interrupt`` was given.
        """
        if not self._arrived:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        item = self._arrived.popleft()
        if isinstance(item, Exception):
            raise item
        return item
