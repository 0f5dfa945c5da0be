"""TensorRT-LLM behind the completion model: each generation is a request to the model ``tensorrt_llm`` beside it.

The request goes through Triton's business logic scripting, decoupled, by the blocking ``exec(decoupled=True)`` on the
scheduler's own worker threads. That form is the same in Triton 2.51 and in the 26.07 container, needs no event loop
beside the scheduler, and its iterator waits without Python's lock; ``async_exec`` would need ``async def execute`` and
a second scheduler, and the iterator's own ``cancel()`` came after 2.51. So each sequence has a thread, and there are
``MOST_WORKERS`` at most.

A generation is ended early by a second request with ``stop`` and the same id, which the backend obeys at once where it
looks for clients that left only now and then. Then the first request's last response still comes, and is waited for: a
worker is free when its place in the engine is.
"""

from __future__ import annotations

import logging
import random
import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hotstart.engines.triton import trtllm_tensors as names
from hotstart.engines.triton.completion.engine import NOTHING_MEASURED, Cancelled, EngineFacts, Measured, OnToken, never
from hotstart.engines.triton.completion.errors import CompletionError
from hotstart.engines.triton.completion.options import RequestOptions
from hotstart.engines.triton.trtllm_config import TRTLLM_MODEL
from hotstart.engines.triton.trtllm_tensors import INPUTS

log = logging.getLogger(__name__)
MOST_WORKERS = 256
WATCH_SECONDS = 0.005  # how often a running generation is asked whether it was cancelled
SEED_BITS = 32
NUMPY_TYPES: dict[str, Any] = {
    names.INT32: np.int32,
    names.INT64: np.int64,
    names.UINT64: np.uint64,
    names.FP32: np.float32,
    names.BOOL: np.bool_,
}
TYPES = {tensor.name: NUMPY_TYPES[tensor.data_type] for tensor in INPUTS}
WANTED = (names.OUTPUT_IDS, names.SEQUENCE_LENGTH, names.ARRIVAL, names.FIRST_SCHEDULED, names.REUSED_BLOCKS)


def make_inputs(
    prompt: Sequence[int], options: RequestOptions, facts: EngineFacts, *, chance: int
) -> dict[str, Sequence[Any]]:
    """Input name -> values of one sequence. Pure; ``chance`` seeds a sampled request that names no seed.

    Without a seed the engine would take the same one for every request. Greedy is top k 1, which needs no temperature.
    """
    inputs: dict[str, Sequence[Any]] = {
        names.INPUT_IDS: prompt,
        names.INPUT_LENGTHS: [len(prompt)],
        names.OUTPUT_LENGTH: [options.max_tokens],
        names.END_ID: [facts.eos_ids[0]],
        names.PAD_ID: [facts.eos_ids[0]],
        names.STREAMING: [True],
        names.PERF_METRICS: [True],
    }
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


@dataclass(eq=False)
class _Running:
    cancelled: Cancelled
    sent: bool = False  # a stop that overtakes its request ends nothing
    stopped: bool = False


class TrtllmEngine:
    """Implements ``engine.Engine``. ``pb_utils`` is Triton's module, an argument so that tests need no Triton."""

    def __init__(self, pb_utils: Any, facts: EngineFacts) -> None:
        self._triton = pb_utils
        self._facts = facts
        self._running: dict[str, _Running] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._watcher = threading.Thread(target=self._watch, name="cancellations", daemon=True)
        self._watcher.start()

    def generate(
        self, prompt: Sequence[int], options: RequestOptions, on_token: OnToken, cancelled: Cancelled = never
    ) -> Measured:
        """As the protocol says.

        Raises:
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

    def _consume(self, request_id: str, running: _Running, inputs: dict[str, Sequence[Any]], take: OnToken) -> Measured:
        over = False
        measured = NOTHING_MEASURED
        responses = self._send(request_id, inputs, WANTED)
        running.sent = True
        for response in responses:
            measured = self._read_measured(response) or measured
            for token in self._read_tokens(response):
                over = over or running.stopped or token in self._facts.eos_ids or take(token)
            if over:
                self._stop(request_id, running)
        return measured

    def _send(self, request_id: str, inputs: dict[str, Sequence[Any]], outputs: Sequence[str]) -> Iterator[Any]:
        """Sends a request at once; its responses as they come. Reading raises CompletionError at one with an error."""
        request = self._triton.InferenceRequest(
            model_name=TRTLLM_MODEL,
            request_id=request_id,
            requested_output_names=list(outputs),
            inputs=[self._triton.Tensor(name, np.array([values], TYPES[name])) for name, values in inputs.items()],
        )
        return _checked(request.exec(decoupled=True))

    def _read_tokens(self, response: Any) -> list[int]:
        ids = self._triton.get_output_tensor_by_name(response, names.OUTPUT_IDS)
        if ids is None:  # the last response of a generation that was ended may have none
            return []
        length = self._triton.get_output_tensor_by_name(response, names.SEQUENCE_LENGTH)
        count = int(length.as_numpy().reshape(-1)[0])
        return [int(token) for token in ids.as_numpy().reshape(-1)[:count]]  # one beam

    def _read_measured(self, response: Any) -> Measured | None:
        wanted = (names.ARRIVAL, names.FIRST_SCHEDULED, names.REUSED_BLOCKS)
        tensors = [self._triton.get_output_tensor_by_name(response, name) for name in wanted]
        if any(tensor is None for tensor in tensors):
            return None
        arrival, scheduled, reused = (int(tensor.as_numpy().reshape(-1)[0]) for tensor in tensors)
        return Measured(queue_ms=round((scheduled - arrival) / 1e6, 2), reused_blocks=reused)

    def _stop(self, request_id: str, running: _Running) -> None:
        with self._changed:
            if running.stopped or request_id not in self._running:
                return
            running.stopped = True
        try:
            list(self._send(request_id, make_stop_inputs(), ()))
        except CompletionError as error:
            log.warning("a stop was refused, the generation runs to its end id=%s error=%s", request_id, error)

    def _watch(self) -> None:
        """Ends generations that were cancelled, also those that wait for their first token."""
        while True:
            with self._changed:
                while not self._running and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                asked = list(self._running.items())
                self._changed.wait(WATCH_SECONDS)
            for request_id, running in asked:
                if running.sent and not running.stopped and running.cancelled():
                    self._stop(request_id, running)


def _checked(responses: Any) -> Iterator[Any]:
    for response in responses:
        if response.has_error():
            raise CompletionError(f"the engine failed: {response.error().message()}")
        yield response
