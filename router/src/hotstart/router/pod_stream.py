"""The gRPC side of one pod: one long-lived stream for all its requests, told apart by id, and the health check.

``docs/adr`` has the measurement behind one stream a pod. The stream opens with the first request and again after it
broke; when it breaks, every request on it is lost. Cancelling is a message of its own, as the stream serves others too.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
from hotstart.exchange.names import TRITON_MODEL
from hotstart.router.call import Call
from hotstart.router.health import Check
from hotstart.router.stubs import service_pb2
from hotstart.router.wire import make_cancel, read_answer

log = logging.getLogger(__name__)

_SERVICE = "/inference.GRPCInferenceService/"
# What a Triton that was told to end answers (2.51); gRPC's own words stand in the same place and under the same code.
NOT_READY_TEXTS = frozenset({"Server not ready", "Server exiting"})
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
CHANNEL_OPTIONS = (
    ("grpc.enable_http_proxy", 0),  # pods are never behind a proxy
    ("grpc.enable_retries", 0),  # retries are the router's own decision
    ("grpc.use_local_subchannel_pool", 1),  # a new pod at an old address does not inherit its back-off
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
)


class _Life:
    """One opened stream: what waits to be written to it, and the task that reads it."""

    def __init__(self) -> None:
        self.outbox: deque[Any] = deque()
        self.wake = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.resting = False  # ends with its last request

    def post(self, message: Any) -> None:
        self.outbox.append(message)
        self.wake.set()

    async def write(self, stream: Any) -> None:
        """Writes what is posted, in order, until the stream breaks."""
        try:
            while True:
                while self.outbox:
                    await stream.write(self.outbox.popleft())
                self.wake.clear()
                await self.wake.wait()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            log.debug("stream to pod takes no more error=%s", error)  # its reader learns why


class PodStream:
    """All that goes to one pod at ``address`` (``host:port`` of its Triton gRPC).

    Args:
        broken: called when the stream breaks by itself.
    """

    def __init__(self, address: str, broken: Callable[[], None]) -> None:
        self.address = address
        self._broken = broken
        self._channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._ready = self._channel.unary_unary(
            _SERVICE + "ModelReady",
            request_serializer=service_pb2.ModelReadyRequest.SerializeToString,
            response_deserializer=service_pb2.ModelReadyResponse.FromString,
        )
        self._infer = self._channel.stream_stream(
            _SERVICE + "ModelStreamInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
        )
        self._calls: dict[str, Call] = {}
        self._life: _Life | None = None

    async def check(self, within: float) -> Check:
        """What Triton says in ``within`` seconds of whether the completion model is ready."""
        try:
            answer = await self._ready(service_pb2.ModelReadyRequest(name=TRITON_MODEL), timeout=within)
        except grpc.aio.AioRpcError as error:
            log.debug("pod is not ready address=%s code=%s why=%s", self.address, error.code(), error.details())
            return Check.NOT_READY if error.details() in NOT_READY_TEXTS else Check.NO_ANSWER
        return Check.READY if answer.ready else Check.NOT_READY

    def send(self, call: Call) -> None:
        """Starts ``call``; its pieces arrive there."""
        self._calls[call.id] = call
        self._post(call.message)

    def cancel(self, call: Call) -> None:
        """Asks the pod to end ``call``; its last message still comes."""
        if call.id in self._calls:
            self._post(make_cancel(call.id))

    def forget(self, call: Call) -> None:
        """Ends ``call`` here, whatever the pod does with it."""
        self._calls.pop(call.id, None)
        call.lose("given up")
        self._end_if_resting()

    def abort(self, why: str) -> None:
        """Breaks the stream: every request on it is lost."""
        life, self._life = self._life, None
        if life is not None and life.task is not None:
            life.task.cancel()
        self._lose_all(why)

    def rest(self) -> None:
        """Closes the stream as soon as no request is on it; the next request opens another.

        For a pod that stopped answering: a Triton that was told to end does not while a stream is open, not even after
        its exit timeout (2.51, measured), though it says at once that its model is not ready.
        """
        if self._life is not None:
            self._life.resting = True
            self._end_if_resting()

    async def close(self) -> None:
        """Ends the stream and the channel."""
        task = None if self._life is None else self._life.task
        self.abort("the router closed its connection")
        if task is not None:
            await asyncio.gather(task, return_exceptions=True)
        await self._channel.close()

    def _post(self, message: Any) -> None:
        if self._life is None:
            self._life = _Life()
            self._life.task = asyncio.create_task(self._run(self._life))
        self._life.post(message)

    def _end_if_resting(self) -> None:
        if self._life is not None and self._life.resting and not self._calls:
            self.abort("resting")

    def _lose_all(self, why: str) -> None:
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.lose(why)

    async def _run(self, life: _Life) -> None:
        """One life of the stream; ends when it breaks or is aborted."""
        stream = self._infer()
        writer = asyncio.create_task(life.write(stream))
        why = "the pod ended the stream"
        try:
            while (message := await stream.read()) is not grpc.aio.EOF:
                self._deliver(message)
        except grpc.aio.AioRpcError as error:
            why = f"{error.code().name}: {error.details()}"
        finally:
            writer.cancel()
            stream.cancel()
            if self._life is life:  # not aborted: nobody has told its requests yet
                log.warning("stream to pod broke address=%s calls=%d why=%s", self.address, len(self._calls), why)
                self._life = None
                self._broken()  # first, so that no slot which this frees is given to another request
                self._lose_all(why)

    def _deliver(self, message: Any) -> None:
        request_id, item = read_answer(message)
        call = self._calls.get(request_id)
        if call is not None:
            call.put(item)
            if call.over:
                del self._calls[request_id]
                self._end_if_resting()
        elif not request_id:
            log.warning("message without a request id address=%s item=%s", self.address, item)
