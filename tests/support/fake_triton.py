"""A Triton in the test's own process: real gRPC, a scripted completion model, and faults that a test can call for.

The fast double of the router's tests; ``tests/router/test_contract.py`` holds it against the real server.
"""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.support.scripts import PREFIX, TEXT

ANSWER = {"steps": 0, "step_ms": 0, "text": TEXT, "error": "", "finish": "stop"}


@dataclass
class Seen:
    """One request as it came."""

    id: str
    prompt: str
    suffix: str | None
    options: dict[str, Any]


@dataclass
class FakeTriton:
    """``await start()``; the address is ``host:port``. ``kill`` breaks all connections, ``freeze`` stops answering.

    ``ready`` False is a Triton that was told to end: it says so, and finishes what it has.
    """

    address: str = ""
    ready: bool = True
    seen: list[Seen] = field(default_factory=list)
    cancelled: dict[str, float] = field(default_factory=dict)  # id -> when the cancel came (monotonic seconds)
    running: set[str] = field(default_factory=set)
    streams: int = 0  # open now
    most_running: int = 0

    async def start(self) -> FakeTriton:
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Service(self), self._server)
        port = self._server.add_insecure_port(self.address or "127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        await self._server.start()
        return self

    async def kill(self) -> None:
        """As if the process had died; ``start`` brings it back at the same address."""
        await self._server.stop(None)
        self.running.clear()
        self.streams = 0

    def freeze(self) -> None:
        """As SIGSTOP: connections stand, nothing answers."""
        self._thawed.clear()

    def thaw(self) -> None:
        self._thawed.set()

    async def thawed(self) -> None:
        await self._thawed.wait()

    @property
    def prompts(self) -> list[str]:
        return [each.prompt for each in self.seen]


class _Service(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    def __init__(self, fake: FakeTriton) -> None:
        self._fake = fake

    async def ModelReady(self, request: Any, context: Any) -> Any:
        await self._fake.thawed()
        if not self._fake.ready:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Server not ready")
        return service_pb2.ModelReadyResponse(ready=True)

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        answers: asyncio.Queue[Any] = asyncio.Queue()
        tasks: set[asyncio.Task[None]] = set()
        reader = asyncio.create_task(self._read(requests, answers, tasks))
        self._fake.streams += 1
        try:
            while (answer := await answers.get()) is not None:
                await self._fake.thawed()
                yield answer
        finally:
            self._fake.streams -= 1
            for task in (reader, *tasks):
                task.cancel()

    async def _read(self, requests: AsyncIterator[Any], answers: asyncio.Queue[Any], tasks: set[Any]) -> None:
        async for request in requests:
            await self._fake.thawed()
            task = asyncio.create_task(self._answer(request, answers))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        await answers.put(None)

    async def _answer(self, request: Any, answers: asyncio.Queue[Any]) -> None:
        if request.model_name != "completion":
            await answers.put(_failure(request.id, f"Request for unknown model: '{request.model_name}' is not found"))
            return
        tensors = {
            tensor.name: raw[4 : 4 + struct.unpack("<I", raw[:4])[0]].decode()
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        fake = self._fake
        if tensors.get("cancel"):
            fake.cancelled.setdefault(tensors["cancel"], time.monotonic())
            await answers.put(_message(request.id, final=True))
            return
        options = json.loads(tensors.get("options") or "{}")
        fake.seen.append(Seen(request.id, tensors["prompt"], tensors.get("suffix"), options))
        fake.running.add(request.id)
        fake.most_running = max(fake.most_running, len(fake.running))
        try:
            await self._generate(request.id, tensors["prompt"], bool(options.get("stream")), answers)
        finally:
            fake.running.discard(request.id)

    async def _generate(self, name: str, prompt: str, stream: bool, answers: asyncio.Queue[Any]) -> None:
        said = json.loads(prompt[len(PREFIX) :]) if prompt.startswith(PREFIX) else ANSWER
        done = 0
        while done < said["steps"] and name not in self._fake.cancelled:
            await asyncio.sleep(said["step_ms"] / 1000)
            await self._fake.thawed()
            done += 1
            if stream and done < said["steps"]:
                await answers.put(_message(name, text=said["text"]))
        self._fake.running.discard(name)
        if name in self._fake.cancelled:
            await answers.put(_message(name, details=_details("cancelled", done), final=True))
        elif said["error"]:
            await answers.put(_failure(name, said["error"]))
        else:
            text = said["text"] if stream else said["text"] * max(1, done)
            await answers.put(_message(name, text=text, details=_details(said["finish"], max(1, done)), final=True))


def _details(reason: str, tokens: int) -> str:
    return json.dumps({"finish_reason": reason, "prompt_tokens": 1, "completion_tokens": tokens})


def _failure(name: str, text: str) -> Any:
    failure = service_pb2.ModelStreamInferResponse(error_message=text)
    failure.infer_response.id = name
    return failure


def _message(name: str, *, text: str = "", details: str = "", final: bool = False) -> Any:
    message = service_pb2.ModelStreamInferResponse()
    response = message.infer_response
    response.id, response.model_name = name, "completion"
    for tensor, value in (("text", text.encode()), ("details", details.encode())):
        response.outputs.add(name=tensor, datatype="BYTES", shape=(1,))
        response.raw_output_contents.append(struct.pack("<I", len(value)) + value)
    response.parameters["triton_final_response"].bool_param = final
    return message
