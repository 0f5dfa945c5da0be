"""The completion model over one gRPC stream with many requests on it, as the router speaks with a pod."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import tritonclient.grpc.aio as grpc

PROMPT = "def add(a, b):\n    "


def tensor(name: str, text: str) -> Any:
    made = grpc.InferInput(name, [1], "BYTES")
    made.set_data_from_numpy(np.array([text.encode()], dtype=object))
    return made


def message(request_id: str, prompt: str = PROMPT, **options: Any) -> dict[str, Any]:
    return {
        "model_name": "completion",
        "request_id": request_id,
        "inputs": [tensor("prompt", prompt), tensor("options", json.dumps(options))],
    }


def cancel_message(request_id: str, target: str) -> dict[str, Any]:
    return {"model_name": "completion", "request_id": request_id, "inputs": [tensor("cancel", target)]}


class Stream:
    """One gRPC stream with many requests on it, told apart by id, as the router has one to each pod."""

    def __init__(self, client: grpc.InferenceServerClient) -> None:
        self._outgoing: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.call = client.stream_infer(self._requests(), stream_timeout=120)
        self.texts: dict[str, list[str]] = {}
        self.details: dict[str, dict[str, Any]] = {}
        self.order: list[str] = []
        self.ended: dict[str, asyncio.Event] = {}
        self.first: dict[str, asyncio.Event] = {}
        self._reader = asyncio.create_task(self._read())

    async def _requests(self) -> AsyncIterator[dict[str, Any]]:
        while True:
            yield await self._outgoing.get()

    def send(self, made: dict[str, Any]) -> str:
        request_id: str = made["request_id"]
        self.ended[request_id], self.first[request_id] = asyncio.Event(), asyncio.Event()
        self.texts[request_id] = []
        self._outgoing.put_nowait(made)
        return request_id

    async def _read(self) -> None:
        async for result, error in self.call:
            assert error is None, error
            response = result.get_response()
            self.texts[response.id].append(result.as_numpy("text")[0].decode())
            self.first[response.id].set()
            if response.parameters["triton_final_response"].bool_param:
                details = result.as_numpy("details")[0]
                self.details[response.id] = json.loads(details) if details else {}
                self.order.append(response.id)
                self.ended[response.id].set()

    async def end(self, *request_ids: str) -> list[dict[str, Any]]:
        async with asyncio.timeout(60):
            await asyncio.gather(*(self.ended[request_id].wait() for request_id in request_ids))
        return [self.details[request_id] for request_id in request_ids]

    async def close(self) -> None:
        self.call.cancel()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
