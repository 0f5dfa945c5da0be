"""One request over the wire: written, read to its last byte, timed and judged. `drive` decides when; this file does it.

A request in flight is a Flight. Its instants are taken in the calls that bring the bytes, so that a queue of waiting
tasks never shows as latency of the server.
"""

import asyncio
import json
from collections.abc import Callable
from urllib.parse import urlsplit

from hotstart.loadtest.answer import AnswerReader, RequestFailed
from hotstart.loadtest.arrivals import Arrival
from hotstart.loadtest.connection import BadHttp, Connection, ConnectionPool
from hotstart.loadtest.pacing import Clock
from hotstart.loadtest.plan import LoadPlan
from hotstart.loadtest.prompts import fit_prompt
from hotstart.loadtest.sample import Outcome, Sample

_DETAIL_CHARACTERS = 200


def make_requests(plan: LoadPlan) -> list[bytes]:
    """Return the bytes of each arrival's request, head and body, made ahead so that sending costs next to nothing."""
    made: dict[tuple[int, int, int | None], bytes] = {}
    requests: list[bytes] = []
    head = _make_head(plan)
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
            encoded = json.dumps(body).encode()
            made[key] = head + b"Content-Length: %d\r\n\r\n%b" % (len(encoded), encoded)
        requests.append(made[key])
    return requests


def _make_head(plan: LoadPlan) -> bytes:
    parts = urlsplit(plan.url)
    headers = {
        "Host": parts.netloc,
        "User-Agent": "hotstart-loadtest",
        "Accept": "text/event-stream" if plan.stream else "application/json",
        "Content-Type": "application/json",
        **plan.headers,
    }
    lines = {name.lower(): f"{name}: {value}\r\n" for name, value in headers.items()}  # one of a name, in any case
    return f"POST {parts.path}/v1/completions HTTP/1.1\r\n{''.join(lines.values())}".encode("latin-1")


class Sender:
    """Sends the requests of one plan. `start` is the run's instant zero on `clock`, in seconds.

    land: called with the sample of each request when it ends. fault: a future that gets the exception when something
    in this program is broken; what a server does is in the samples.
    """

    def __init__(self, plan: LoadPlan, clock: Clock, start: float, land: Callable[[Sample], None]) -> None:
        self.plan = plan
        self.clock = clock
        self.start = start
        self.pool = ConnectionPool(plan.url)
        self.loop = asyncio.get_running_loop()
        self.fault: asyncio.Future[None] = self.loop.create_future()
        self._land = land
        self._in_flight: set[Flight] = set()
        self._all_landed = asyncio.Event()
        self._all_landed.set()

    def send(self, arrival: Arrival, request: bytes) -> None:
        """Write the request now, or as soon as a connection stands; returns at once."""
        flight = Flight(self, arrival)
        self._in_flight.add(flight)
        self._all_landed.clear()
        flight.launch(request)

    def land(self, flight: "Flight", sample: Sample) -> None:
        """Take the sample of a flight that has ended."""
        self._in_flight.discard(flight)
        self._land(sample)
        if not self._in_flight:
            self._all_landed.set()

    def report_fault(self, fault: BaseException) -> None:
        """Remember the first fault of this program."""
        if not self.fault.done():
            self.fault.set_exception(fault)

    async def wait_for_all(self) -> None:
        """Return when nothing is in flight."""
        await self._all_landed.wait()

    async def close(self) -> None:
        """Give up what is in flight, as UNFINISHED, and close all connections."""
        connecting = [flight.connecting for flight in self._in_flight if flight.connecting is not None]
        for flight in tuple(self._in_flight):
            flight.give_up(Outcome.UNFINISHED)
        await asyncio.gather(*connecting, return_exceptions=True)
        await self.pool.close()
        if not self.fault.done():
            self.fault.cancel()


class Flight:
    """A request on its way; instants in seconds of the run's clock. It is the Receiver of its connection."""

    def __init__(self, sender: Sender, arrival: Arrival) -> None:
        plan = sender.plan
        self.connecting: asyncio.Task[None] | None = None
        self._sender = sender
        self._arrival = arrival
        self._intended = sender.start + arrival.offset
        self._hangs_up = arrival.cancel and (plan.cancel_after_s or 0) < plan.timeout_s
        self._allowed_s = (plan.cancel_after_s or 0) if self._hangs_up else plan.timeout_s
        self._reader = AnswerReader(stream=plan.stream)
        self._connection: Connection | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._left = 0.0
        self._first_token: float | None = None
        self._landed = False

    def launch(self, request: bytes) -> None:
        """Write the request to a standing connection, or begin to open one."""
        connection = self._sender.pool.take()
        if connection is not None:
            self._write(connection, request, waited_s=0.0)
        else:
            self._left = self._sender.clock.now()
            self.connecting = self._sender.loop.create_task(self._connect(request))
        if not self._landed:
            rest = self._intended + self._allowed_s - self._sender.clock.now()
            self._alarm = self._sender.loop.call_later(max(rest, 0.0), self._expire)

    def give_up(self, outcome: Outcome, reason: str = "", detail: str = "") -> None:
        """Hang up and land with `outcome`."""
        if self._connection is not None:
            self._connection.abort()
        if self.connecting is not None:
            self.connecting.cancel()
        self._end(outcome, reason, detail)

    def received(self, data: bytes) -> None:
        self._reader.feed(data)
        if self._first_token is None and self._reader.chunks:
            self._first_token = self._sender.clock.now() - self._intended

    def finished(self, status: int) -> None:
        latency = self._sender.clock.now() - self._intended
        try:
            self._reader.end(status)
        except RequestFailed as failure:
            self._end(Outcome.FAILED, failure.reason, failure.detail, latency)
        except Exception as fault:  # noqa: BLE001 - asyncio would only log it; `drive` ends the run with it
            self._sender.report_fault(fault)
        else:
            self._end(Outcome.OK, latency=latency)

    def lost(self, error: Exception | None, *, began: bool) -> None:
        if isinstance(error, BadHttp):
            self._end(Outcome.FAILED, "bad_response", str(error))
        elif error is not None and not isinstance(error, OSError):
            self._sender.report_fault(error)
        else:
            detail = str(error) if error is not None else "the server closed the connection"
            self._end(Outcome.FAILED, "cut_short" if began else "connection_lost", detail)

    async def _connect(self, request: bytes) -> None:
        began = self._sender.clock.now()
        try:
            connection = await self._sender.pool.open()
        except OSError as error:
            self._end(Outcome.FAILED, "connect", str(error))
            return
        except Exception as fault:  # noqa: BLE001 - a task would keep it to itself; `drive` ends the run with it
            self._sender.report_fault(fault)
            return
        self._write(connection, request, waited_s=self._sender.clock.now() - began)

    def _write(self, connection: Connection, request: bytes, *, waited_s: float) -> None:
        self._connection = connection
        self._left = self._sender.clock.now() - waited_s
        connection.start(request, self)

    def _expire(self) -> None:
        if self._hangs_up:
            self.give_up(Outcome.CANCELLED)
        else:
            detail = f"no last byte within {self._allowed_s:g} s of the intended time"
            self.give_up(Outcome.FAILED, "timeout", detail)

    def _end(self, outcome: Outcome, reason: str = "", detail: str = "", latency: float | None = None) -> None:
        if self._landed:
            return
        self._landed = True
        self._connection = None
        if self._alarm is not None:
            self._alarm.cancel()
        sample = Sample(
            intended=self._arrival.offset,
            drift=max(self._left - self._intended, 0.0),
            latency=self._sender.clock.now() - self._intended if latency is None else latency,
            outcome=outcome,
            reason=reason,
            detail=detail[:_DETAIL_CHARACTERS],
            first_token=self._first_token,
            tokens=self._reader.tokens,
            chunks=self._reader.chunks,
        )
        self._sender.land(self, sample)
