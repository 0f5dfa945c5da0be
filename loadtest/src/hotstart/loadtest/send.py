"""One request over the wire: sent, read to its last byte, timed and judged. `drive` decides when; this file does it."""

import asyncio
import json
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import aiohttp
from hotstart.loadtest.arrivals import Arrival
from hotstart.loadtest.pacing import Clock
from hotstart.loadtest.plan import LoadPlan
from hotstart.loadtest.prompts import fit_prompt
from hotstart.loadtest.sample import Outcome, Sample
from yarl import URL

_DETAIL_CHARACTERS = 200


class RequestFailed(Exception):
    """A request that got no good completion. `reason` is a short stable word, `detail` what is known of the cause."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail[:_DETAIL_CHARACTERS]


@dataclass(slots=True)
class Flight:
    """A request on its way; instants in seconds of the run's clock."""

    arrival: Arrival
    intended: float
    started: float = 0.0
    sent: float | None = None
    connect_began: float | None = None
    connect_s: float = 0.0
    first_token: float | None = None
    tokens: int | None = None
    chunks: int = field(default=0)

    def drift(self) -> float:
        """Return the generator's lateness in seconds (see Sample.drift)."""
        left = self.started if self.sent is None else self.sent - self.connect_s
        return max(left - self.intended, 0.0)


def make_bodies(plan: LoadPlan) -> list[bytes]:
    """Return the JSON body of each arrival, made ahead so that sending costs as little as it can."""
    made: dict[tuple[int, int, int | None], bytes] = {}
    bodies: list[bytes] = []
    for arrival in plan.arrivals:
        key = (arrival.prompt, arrival.max_tokens, arrival.context_tokens)
        if key not in made:
            body = {
                "model": plan.model,
                "prompt": fit_prompt(plan.prompts, arrival.prompt, arrival.context_tokens),
                "max_tokens": arrival.max_tokens,
                "stream": plan.stream,
                "temperature": 0,
            }
            made[key] = json.dumps(body, ensure_ascii=False).encode()
        bodies.append(made[key])
    return bodies


def make_session(plan: LoadPlan, clock: Clock) -> aiohttp.ClientSession:
    """Return a session without a bound on connections, which notes on each Flight when its bytes really left."""
    trace = aiohttp.TraceConfig()

    async def note_sent(_session: aiohttp.ClientSession, context: SimpleNamespace, _params: Any) -> None:
        context.trace_request_ctx.sent = clock.now()

    async def note_connecting(_session: aiohttp.ClientSession, context: SimpleNamespace, _params: Any) -> None:
        context.trace_request_ctx.connect_began = clock.now()

    async def note_connected(_session: aiohttp.ClientSession, context: SimpleNamespace, _params: Any) -> None:
        flight: Flight = context.trace_request_ctx
        if flight.connect_began is not None:
            flight.connect_s += clock.now() - flight.connect_began

    trace.on_request_chunk_sent.append(note_sent)
    trace.on_connection_create_start.append(note_connecting)
    trace.on_connection_create_end.append(note_connected)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # `send_request` holds the only deadline
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Content-Type": "application/json", **plan.headers},
        trace_configs=[trace],
        read_bufsize=2**18,
    )


class Sender:
    """Sends the requests of one plan over one session. `start` is the run's instant zero on `clock`."""

    def __init__(self, plan: LoadPlan, session: aiohttp.ClientSession, clock: Clock, start: float) -> None:
        self._plan = plan
        self._session = session
        self._clock = clock
        self._start = start
        self._url = URL(plan.url + "/v1/completions")

    async def send_request(self, arrival: Arrival, body: bytes) -> Sample:
        """Send one request and return its sample; never raises but for what is a fault of this program.

        Cancelling the task that runs it (the run is interrupted) gives a sample too, with the outcome UNFINISHED.
        """
        flight = Flight(arrival, intended=self._start + arrival.offset, started=self._clock.now())
        outcome, reason, detail = await self._judge(flight, body)
        return Sample(
            intended=arrival.offset,
            drift=flight.drift(),
            latency=self._clock.now() - flight.intended,
            outcome=outcome,
            reason=reason,
            detail=detail,
            first_token=None if flight.first_token is None else flight.first_token - flight.intended,
            tokens=flight.tokens,
            chunks=flight.chunks,
        )

    async def _judge(self, flight: Flight, body: bytes) -> tuple[Outcome, str, str]:
        hangs_up = flight.arrival.cancel and (self._plan.cancel_after_s or 0) < self._plan.timeout_s
        allowed = (self._plan.cancel_after_s or 0) if hangs_up else self._plan.timeout_s
        deadline = asyncio.get_running_loop().time() + flight.intended + allowed - self._clock.now()
        try:
            async with asyncio.timeout_at(deadline):
                await self._exchange(flight, body)
        except TimeoutError:
            if hangs_up:
                return Outcome.CANCELLED, "", ""
            return Outcome.FAILED, "timeout", f"no last byte within {allowed:g} s of the intended time"
        except asyncio.CancelledError:
            return Outcome.UNFINISHED, "", ""
        except RequestFailed as failure:
            return Outcome.FAILED, failure.reason, failure.detail
        except aiohttp.ClientConnectorError as error:
            return Outcome.FAILED, "connect", str(error)[:_DETAIL_CHARACTERS]
        except aiohttp.ClientPayloadError as error:
            return Outcome.FAILED, "cut_short", str(error)[:_DETAIL_CHARACTERS]
        except (aiohttp.ClientError, OSError) as error:
            return Outcome.FAILED, "connection_lost", (str(error) or repr(error))[:_DETAIL_CHARACTERS]
        return Outcome.OK, "", ""

    async def _exchange(self, flight: Flight, body: bytes) -> None:
        async with self._session.post(self._url, data=body, trace_request_ctx=flight) as response:
            if response.status != 200:
                text = await response.read()
                raise RequestFailed(f"http_{response.status}", _error_message(text))
            if self._plan.stream:
                await self._read_stream(flight, response)
            else:
                _note_completion(flight, await response.read())

    async def _read_stream(self, flight: Flight, response: aiohttp.ClientResponse) -> None:
        finished = False
        async for line in response.content:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                finished = True
                continue
            event = _parse_object(data)
            if "error" in event:
                raise RequestFailed("stream_error", _error_message(data))
            if _text_of(event):
                flight.chunks += 1
                if flight.first_token is None:
                    flight.first_token = self._clock.now()
            flight.tokens = _usage_tokens(event) or flight.tokens
        if not finished:
            raise RequestFailed("cut_short", "the stream ended without data: [DONE]")


def _note_completion(flight: Flight, text: bytes) -> None:
    completion = _parse_object(text)
    if not isinstance(completion.get("choices"), list) or not completion["choices"]:
        raise RequestFailed("bad_response", f"no choices in the answer: {text[:120]!r}")
    flight.tokens = _usage_tokens(completion)


def _parse_object(text: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except ValueError:
        raise RequestFailed("bad_response", f"the answer is no JSON: {text[:120]!r}") from None
    if not isinstance(parsed, dict):
        raise RequestFailed("bad_response", f"the answer is no JSON object: {text[:120]!r}")
    return parsed


def _text_of(event: dict[str, Any]) -> str:
    choices = event.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return ""
    return str(choices[0].get("text") or "")


def _usage_tokens(parsed: dict[str, Any]) -> int | None:
    usage = parsed.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return tokens if isinstance(tokens, int) else None


def _error_message(text: bytes) -> str:
    """Return the message of an error in OpenAI's shape, else the beginning of the text."""
    try:
        parsed = json.loads(text)
    except ValueError:
        return text[:_DETAIL_CHARACTERS].decode(errors="replace")
    error = parsed.get("error") if isinstance(parsed, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or parsed)
