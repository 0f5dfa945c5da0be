"""POST /v1/completions: reads a request, hands its pieces to the client, keeps the books.

The first byte goes out with the first piece and not before, so that what fails until then has a status of its own and
can go to another pod. A client that leaves ends its task, and with it the generation.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import aclosing
from dataclasses import dataclass

from aiohttp import web
from hotstart.router.core import Router
from hotstart.router.errors import ApiError, invalid, unavailable, unknown_model
from hotstart.router.generation import Job, generate
from hotstart.router.lane import Lane
from hotstart.router.openai import (
    LAST_EVENT,
    Completion,
    Usage,
    check_format,
    encode_event,
    make_answer,
    make_usage_chunk,
    parse_completion,
)
from hotstart.router.refusals import Rejected
from hotstart.router.statistics import Outcome, decide_cancelled
from hotstart.router.wire import Piece
from pydantic_core import to_json

BODY_TIMEOUT_SECONDS = 30.0
REQUEST_ID_HEADER = "x-request-id"


@dataclass(slots=True)
class Turn:
    """One request while it is served. Times are of the loop's clock; ``outcome`` is what holds if it ended now."""

    id: str
    received: float
    completion: Completion
    lane: Lane
    created: int
    first_piece: float = 0.0
    outcome: Outcome = Outcome.FAILED

    def passed(self) -> float:
        """Seconds since the request was received."""
        return asyncio.get_running_loop().time() - self.received

    def see(self, piece: Piece) -> None:
        if not self.first_piece and (piece.text or piece.final):
            self.first_piece = asyncio.get_running_loop().time()


class Completions:
    """Args: ``request_timeout`` is in seconds, from a slot at a pod to the last byte."""

    def __init__(self, router: Router, *, request_timeout: float) -> None:
        self._router = router
        self.request_timeout = request_timeout

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """The aiohttp handler; raises ApiError for what has no completion."""
        self._router.begin_turn()
        try:
            return await self._serve(request)
        finally:
            self._router.end_turn()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        received = asyncio.get_running_loop().time()
        completion = parse_completion(await _read_body(request))
        lane = self._lane(completion.model)
        check_format(completion, lane.route.prompt_format)
        turn = Turn("cmpl-" + os.urandom(12).hex(), received, completion, lane, int(time.time()))
        lane.book.arrive(time.time())
        try:
            if completion.stream:
                return await self._stream(request, turn)
            return await self._whole(request, turn)
        except asyncio.CancelledError:
            _client_left(turn)
            raise
        except Rejected:
            turn.outcome = Outcome.REJECTED
            raise
        finally:
            _keep_books(turn)

    def _lane(self, model: str) -> Lane:
        lane = self._router.lanes.get(model)
        if lane is not None:
            return lane
        if not self._router.table.known:
            raise unavailable("The router does not know its models yet; try again.", code="starting", retry_after=1)
        raise unknown_model(model)

    async def _whole(self, request: web.Request, turn: Turn) -> web.StreamResponse:
        texts = []
        async with aclosing(generate(turn.lane, self._job(turn))) as pieces:
            async for piece in pieces:
                turn.see(piece)
                texts.append(piece.text)
        reason, usage = _ending(piece)
        answer = make_answer(turn.id, turn.completion.model, turn.created, "".join(texts), reason, usage)
        response = web.Response(body=to_json(answer), content_type="application/json")
        response.headers[REQUEST_ID_HEADER] = turn.id
        try:
            await self._begin(request, response)
            await response.write_eof()
            turn.outcome = Outcome.COMPLETED
        except ConnectionError:
            _client_left(turn)
        return response

    async def _stream(self, request: web.Request, turn: Turn) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Cache-Control": "no-cache", REQUEST_ID_HEADER: turn.id})
        response.content_type = "text/event-stream"
        try:
            async with aclosing(generate(turn.lane, self._job(turn))) as pieces:
                async for piece in pieces:
                    turn.see(piece)
                    if not response.prepared:
                        await self._begin(request, response)
                    if events := _events(piece, turn):
                        await response.write(events)
            turn.outcome = Outcome.COMPLETED
        except ApiError as error:
            if not response.prepared:
                raise
            await response.write(b"data: " + error.body() + b"\n\n")
        except ConnectionError:
            _client_left(turn)
            return response
        await response.write_eof()
        return response

    def _job(self, turn: Turn) -> Job:
        return Job(turn.id, turn.completion, self.request_timeout)

    async def _begin(self, request: web.Request, response: web.StreamResponse) -> None:
        if self._router.draining:
            response.force_close()  # so that the client's next request goes to another router
        await response.prepare(request)


async def _read_body(request: web.Request) -> bytes:
    try:
        if request.content.is_eof():  # it came with the headers
            return await request.read()
        async with asyncio.timeout(BODY_TIMEOUT_SECONDS):
            return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        limit = request.client_max_size
        raise invalid(f"The body is larger than {limit} bytes.", code="body_too_large", status=413) from error
    except web.RequestPayloadError as error:
        raise invalid("The body is not in the encoding that its headers name.", code="invalid_body") from error
    except TimeoutError:
        raise invalid("The body did not arrive in time.", code="body_timeout", status=408) from None


def _ending(last: Piece) -> tuple[str | None, Usage]:
    if last.details is None:
        return None, Usage(0, 0)
    return last.details.finish_reason, Usage(last.details.prompt_tokens, last.details.completion_tokens)


def _events(piece: Piece, turn: Turn) -> bytes:
    """The server-sent events of one piece; nothing for one without text in the middle."""
    model, include_usage = turn.completion.model, turn.completion.include_usage
    if not piece.final and not piece.text:
        return b""
    reason, usage = _ending(piece)
    chunk = make_answer(turn.id, model, turn.created, piece.text, reason, None)
    if include_usage:
        chunk["usage"] = None
    if not piece.final:
        return encode_event(chunk)
    last = encode_event(make_usage_chunk(turn.id, model, turn.created, usage)) if include_usage else b""
    return encode_event(chunk) + last + LAST_EVENT


def _client_left(turn: Turn) -> None:
    """The client is gone; what it has in whole is completed all the same."""
    if turn.outcome is not Outcome.COMPLETED:
        turn.outcome = decide_cancelled(turn.passed(), turn.lane.route.slo_ms)


def _keep_books(turn: Turn) -> None:
    lane, latency = turn.lane, turn.passed()
    lane.book.finish(time.time(), turn.outcome, latency, lane.route.slo_ms)
    lane.counters.outcomes[turn.outcome] += 1
    if turn.outcome is Outcome.COMPLETED:
        lane.counters.latency.observe(latency)
        lane.counters.first_piece.observe(turn.first_piece - turn.received)
