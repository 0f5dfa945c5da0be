"""A completion model that does what its prompt says (see tests/support/scripts.py); for a real Triton."""

import asyncio
import json

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
PREFIX = "#script "
ANSWER = {"steps": 0, "step_ms": 0, "text": "    return x\n", "error": "", "finish": "stop"}


def _read(request, name):
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return tensor.as_numpy().reshape(-1)[0].decode() if tensor is not None else ""


def _response(text, details=""):
    return pb_utils.InferenceResponse(
        [
            pb_utils.Tensor("text", np.array([text.encode()], dtype=object)),
            pb_utils.Tensor("details", np.array([details.encode()], dtype=object)),
        ]
    )


def _details(reason, tokens):
    return json.dumps({"finish_reason": reason, "prompt_tokens": 1, "completion_tokens": tokens})


class TritonPythonModel:
    def initialize(self, args):
        self._cancelled = set()
        self._running = set()

    async def execute(self, requests):
        await asyncio.gather(*(self._run(request) for request in requests))

    async def _run(self, request):
        sender = request.get_response_sender()
        cancel = _read(request, "cancel")
        if cancel:
            if cancel in self._running:
                self._cancelled.add(cancel)
            sender.send(_response(""), flags=FINAL)
            return
        prompt, name = _read(request, "prompt"), request.request_id()
        said = json.loads(prompt[len(PREFIX) :]) if prompt.startswith(PREFIX) else ANSWER
        stream = json.loads(_read(request, "options") or "{}").get("stream")
        self._running.add(name)
        while said.get("wait_idle") and self._running != {name}:  # noqa: ASYNC110 - to see it in the same tick
            await asyncio.sleep(0)
        done = 0
        while done < said["steps"] and name not in self._cancelled and not request.is_cancelled():
            await asyncio.sleep(said["step_ms"] / 1000)
            done += 1
            if stream and done < said["steps"]:
                sender.send(_response(said["text"]))
        self._running.discard(name)
        if name in self._cancelled or request.is_cancelled():
            self._cancelled.discard(name)
            sender.send(_response("", _details("cancelled", done)), flags=FINAL)
        elif said["error"]:
            error = pb_utils.TritonError(said["error"])
            sender.send(pb_utils.InferenceResponse([], error=error), flags=FINAL)
        else:
            text = said["text"] if stream else said["text"] * max(1, done)
            sender.send(_response(text, _details(said["finish"], max(1, done))), flags=FINAL)
