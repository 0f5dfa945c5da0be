"""TensorRT-LLM behind the completion model: each generation is a request to the model ``tensorrt_llm`` beside it.

The request goes through Triton's own HTTP port on the loopback (``generate_stream``, one JSON message a response), from
the scheduler's worker threads: each sequence has a thread, and there are ``MOST_WORKERS`` at most.

It does not go through Triton's business logic scripting, which deadlocks as soon as several threads use it decoupled.
Seen in Triton 2.51, and the code is the same in the 26.07 container (python_backend, branches r24.10 and r26.07):
``ResponseIterator::Next`` waits for Python's lock while it holds its iterator's, ``Stub::ProcessBLSResponseDecoupled``
waits for the iterator's while it holds the map's, and ``Stub::GetResponseIterator``, which ends every ``exec``, waits
for the map's while it holds Python's. ``async_exec`` runs the same code on threads of its own.

A generation is ended early by a second request with ``stop`` and the same id, which the backend obeys at once where it
looks for clients that left only now and then. Then the first request's last response still comes, and is waited for: a
worker is free when its place in the engine is. Where no stop gets through, the client leaves.

A Triton that was sent SIGTERM stops its HTTP port first, while generations go on. What has not begun by then is
Overloaded: nothing of it was handed on, and the router asks another replica.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import random
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from hotstart.engines.triton import trtllm_tensors as names
from hotstart.engines.triton.completion.engine import NOTHING_MEASURED, Cancelled, EngineFacts, Measured, OnToken, never
from hotstart.engines.triton.completion.errors import CompletionError, Overloaded
from hotstart.engines.triton.completion.options import RequestOptions
from hotstart.engines.triton.trtllm_config import TRTLLM_MODEL
from hotstart.engines.triton.trtllm_tensors import INPUTS

log = logging.getLogger(__name__)
MOST_WORKERS = 256
WATCH_SECONDS = 0.005  # how often a running generation is asked whether it was cancelled
STOP_AGAIN_SECONDS = 0.05  # a stop may overtake its request, until that is answered
STOP_SECONDS = 2.0  # after which a stop that is not answered is one that did not get through
STOPS_AT_ONCE = 8
SILENT_SECONDS = 60.0  # between two responses: the engine works on all that it was given, and has far less to do
SEED_BITS = 32
#: JSON of an input: Triton takes no whole number for a floating one.
JSON_TYPES: dict[str, Callable[[Any], Any]] = {
    names.INT32: int,
    names.INT64: int,
    names.UINT64: int,
    names.FP32: float,
    names.BOOL: bool,
}
TYPES = {tensor.name: JSON_TYPES[tensor.data_type] for tensor in INPUTS}
PATH = f"/v2/models/{TRTLLM_MODEL}/generate_stream"
DATA = b"data:"  # server-sent events; an error before the first is plain JSON


def make_inputs(
    prompt: Sequence[int], options: RequestOptions, facts: EngineFacts, *, chance: int
) -> dict[str, Sequence[Any]]:
    """Input name -> values of one sequence. Pure; ``chance`` seeds a sampled request that names no seed.

    Without a seed the engine would take the same one for every request. Greedy is top k 1, which needs no temperature.
    Where no token ends a text, the engine takes none for the end: it runs on to the limit.
    """
    inputs: dict[str, Sequence[Any]] = {
        names.INPUT_IDS: prompt,
        names.INPUT_LENGTHS: [len(prompt)],
        names.OUTPUT_LENGTH: [options.max_tokens],
        names.STREAMING: [True],
        names.PERF_METRICS: [True],
    }
    if facts.eos_ids:
        inputs |= {names.END_ID: facts.eos_ids[:1], names.PAD_ID: facts.eos_ids[:1]}
    if options.temperature == 0:
        return {**inputs, names.TOP_K: [1]}
    return {
        **inputs,
        names.TOP_K: [options.top_k],
        names.TOP_P: [options.top_p],
        names.TEMPERATURE: [options.temperature],
        names.SEED: [chance if options.seed is None else options.seed],
    }


def make_stop_inputs() -> dict[str, Sequence[Any]]:
    """The inputs of the request that ends another: besides ``stop`` what the backend's configuration requires."""
    return {names.INPUT_IDS: [0], names.INPUT_LENGTHS: [1], names.OUTPUT_LENGTH: [0], names.STOP: [True]}


def make_body(request_id: str, inputs: Mapping[str, Sequence[Any]]) -> bytes:
    """The JSON of a request. Pure."""
    tensors = {name: [TYPES[name](value) for value in values] for name, values in inputs.items()}
    return json.dumps({"id": request_id, **tensors}).encode()


def read_tokens(message: Mapping[str, Any]) -> list[int]:
    """The new tokens in a response: of one beam, and without what pads them. Pure.

    Raises:
        CompletionError: the response does not say how many there are.
    """
    ids = _values(message, names.OUTPUT_IDS)
    if not ids:  # the last response of a generation that was ended may have none
        return []
    length = _values(message, names.SEQUENCE_LENGTH)
    if not length:
        raise CompletionError(f"the engine failed: a response has {names.OUTPUT_IDS} and no {names.SEQUENCE_LENGTH}")
    return [int(token) for token in ids[: int(length[0])]]


def read_measured(message: Mapping[str, Any]) -> Measured | None:
    """What the engine says of a generation, which stands in one of its responses. Pure."""
    if names.ARRIVAL not in message:
        return None
    values = [_values(message, name) for name in (names.ARRIVAL, names.FIRST_SCHEDULED, names.REUSED_BLOCKS)]
    if not all(values):
        return None
    arrival, scheduled, reused = (int(value[0]) for value in values)
    return Measured(queue_ms=round((scheduled - arrival) / 1e6, 2), reused_blocks=reused)


@dataclass(eq=False)
class _Running:
    cancelled: Cancelled
    sent: bool = False  # a stop that overtakes its request ends nothing
    answered: bool = False
    stopping: bool = False  # a stop is on its way
    stopped: bool = False
    stopped_at: float = 0.0
    unheard: bool = False  # no stop gets through

    def wants_stop(self) -> bool:
        if not self.sent or self.stopping or self.unheard or (self.stopped and self.answered):
            return False
        if self.stopped:
            return time.monotonic() - self.stopped_at > STOP_AGAIN_SECONDS
        return self.cancelled()


class TrtllmEngine:
    """Implements ``engine.Engine``. ``address`` is host:port where this very Triton listens for HTTP."""

    def __init__(self, address: str, facts: EngineFacts) -> None:
        self._address = address
        self._facts = facts
        self._running: dict[str, _Running] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._stops = ThreadPoolExecutor(STOPS_AT_ONCE, thread_name_prefix="stop")
        self._watcher = threading.Thread(target=self._watch, name="cancellations", daemon=True)
        self._watcher.start()

    def generate(
        self, prompt: Sequence[int], options: RequestOptions, on_token: OnToken, cancelled: Cancelled = never
    ) -> Measured:
        """As the protocol says.

        Raises:
            Overloaded: Triton's port does not answer; nothing was generated.
            CompletionError: the backend refuses or fails; the message is its own.
        """
        request_id = uuid.uuid4().hex  # not the client's: two may have the same
        running = _Running(cancelled)
        with self._changed:
            self._running[request_id] = running
            self._changed.notify_all()
        try:
            inputs = make_inputs(prompt, options, self._facts, chance=random.getrandbits(SEED_BITS))
            return self._consume(request_id, running, inputs, on_token)
        finally:
            with self._changed:
                del self._running[request_id]

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._watcher.join()
        self._stops.shutdown(cancel_futures=True)

    def _consume(self, request_id: str, running: _Running, inputs: dict[str, Sequence[Any]], take: OnToken) -> Measured:
        over = False
        measured = NOTHING_MEASURED

        def on_sent() -> None:
            running.sent = True

        with contextlib.closing(self._ask(request_id, inputs, SILENT_SECONDS, on_sent)) as messages:
            for message in messages:
                running.answered = True
                measured = read_measured(message) or measured
                for token in read_tokens(message):
                    over = over or running.stopped or token in self._facts.eos_ids or take(token)
                if over and not running.stopped:
                    self._stop(request_id, running)
                if over and running.unheard:
                    break
        return measured

    def _ask(
        self,
        request_id: str,
        inputs: dict[str, Sequence[Any]],
        seconds: float,
        on_sent: Callable[[], None] = lambda: None,
    ) -> Generator[Mapping[str, Any], None, None]:
        """The responses to a request as they come. Closed early, Triton is told that nobody waits for the others.

        Args:
            seconds: how long to wait for each.

        Raises:
            Overloaded: Triton cannot be asked, or goes away before the first.
            CompletionError: a response is an error, or the others do not come.
        """
        connection = http.client.HTTPConnection(self._address, timeout=seconds)
        answered = False
        try:
            connection.request("POST", PATH, make_body(request_id, inputs), {"Content-Type": "application/json"})
            on_sent()
            response = connection.getresponse()
            for line in _read_lines(response):
                if text := line.removeprefix(DATA).strip():
                    message = _checked(json.loads(text.decode()))  # of bytes json would guess the encoding
                    answered = True
                    yield message
            if response.status != http.client.OK:
                raise CompletionError(f"the engine failed: HTTP status {response.status}")
        except ValueError as error:  # no JSON, or no UTF-8
            raise CompletionError(f"the engine failed: {PATH} at {self._address}: {error!r}") from error
        except (OSError, http.client.HTTPException) as error:
            what = f"{PATH} at {self._address}: {error!r}"
            if answered:
                raise CompletionError(f"the engine failed: {what}") from error
            raise Overloaded(f"this replica's engine cannot be reached, ask another one: {what}") from error
        finally:
            connection.close()

    def _stop(self, request_id: str, running: _Running) -> None:
        with self._changed:
            if request_id not in self._running:
                return
            running.stopped, running.stopped_at = True, time.monotonic()
        try:
            with contextlib.closing(self._ask(request_id, make_stop_inputs(), STOP_SECONDS)) as messages:
                for _ in messages:
                    pass
        except Overloaded as error:
            running.unheard = True
            log.warning("a stop did not get through, its client leaves id=%s error=%s", request_id, error)
        except CompletionError as error:
            log.warning("a stop was refused, the generation runs to its end id=%s error=%s", request_id, error)
        finally:
            running.stopping = False

    def _watch(self) -> None:
        """Ends generations that were cancelled, also those that wait for their first token."""
        while True:
            with self._changed:
                while not self._running and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                self._changed.wait(WATCH_SECONDS)
                wanted = [
                    (request_id, running) for request_id, running in self._running.items() if running.wants_stop()
                ]
                for _, running in wanted:
                    running.stopping = True
            for request_id, running in wanted:
                self._stops.submit(self._stop, request_id, running)


def _read_lines(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The lines of a body as they come. Raises IncompleteRead at one that was cut off, which iteration does not."""
    rest = b""
    while piece := response.read1():
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
    yield rest


def _values(message: Mapping[str, Any], name: str) -> list[Any]:
    """A tensor's values: Triton writes one value without brackets."""
    value = message.get(name, [])
    return value if isinstance(value, list) else [value]


def _checked(message: Mapping[str, Any]) -> Mapping[str, Any]:
    if "error" in message:
        raise CompletionError(f"the engine failed: {message['error']}")
    return message
