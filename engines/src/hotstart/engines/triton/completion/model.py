"""The Python-backend model that Triton loads: tensors in, jobs to the scheduler, responses out. Thin.

One instance, decoupled. ``execute`` only queues, so Triton hands over the next request at once; answers come from the
workers' threads, in the order in which they are done. All tensors are BYTES[1], all inputs optional:

    prompt, suffix   text to go on from, and text that stands behind it (format fim only)
    options          JSON, see ``options``
    cancel           the id of a request to cancel; the other inputs are then ignored, and the answer is empty
    text             the completion, or the next piece of it where options.stream is true
    details          JSON with the last message, see ``job.make_details``; empty before

The id is Triton's request id; whoever may cancel must make it unique over all clients of the pod.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from hotstart.engines.triton.completion.engine import CTranslate2Engine, Engine, EngineFacts, read_facts
from hotstart.engines.triton.completion.engine_trtllm import MOST_WORKERS, TrtllmEngine
from hotstart.engines.triton.completion.errors import CompletionError, InvalidRequest
from hotstart.engines.triton.completion.job import CompletionJob, Ended
from hotstart.engines.triton.completion.metrics import Metrics
from hotstart.engines.triton.completion.names import ADDRESS_VARIABLE, WARM_UP_ID
from hotstart.engines.triton.completion.options import parse_options
from hotstart.engines.triton.completion.prompts import make_formatter
from hotstart.engines.triton.completion.replay import ProvenEngine, replay
from hotstart.engines.triton.completion.scheduler import Scheduler
from hotstart.engines.triton.completion.stops import StopRules, base_indent
from hotstart.engines.triton.completion.tokenizer import load_tokenizer, make_next_text
from hotstart.engines.triton.trtllm_config import read_build
from hotstart.exchange.messages import ServingOptions
from hotstart.exchange.names import PORT_TRITON_HTTP, TENSORRT_LLM

log = logging.getLogger(__name__)


class TritonAnswer:
    """Implements ``job.Answer`` with a decoupled response sender.

    Triton frees a request with its final response; asking it afterwards whether it is cancelled crashes the server. So
    the two exclude each other.
    """

    def __init__(self, request: Any) -> None:
        self._request = request
        self._sender = request.get_response_sender()
        self._lock = threading.Lock()
        self._over = False

    def send(self, text: str) -> None:
        self._sender.send(_response(text, ""))

    def finish(self, text: str, details: str) -> None:
        self._end(_response(text, details))

    def fail(self, error: CompletionError) -> None:
        self._end(pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error))))

    def gone(self) -> bool:
        with self._lock:
            return not self._over and bool(self._request.is_cancelled())

    def _end(self, response: Any) -> None:
        with self._lock:
            self._over = True
            self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


class TritonPythonModel:
    """What Triton's Python backend instantiates."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = {
            name: entry["string_value"] for name, entry in json.loads(args["model_config"])["parameters"].items()
        }
        self._serving = ServingOptions.model_validate_json(parameters["serving"])
        folder = Path(parameters["engine_folder"])
        facts = read_facts(folder)
        self._tokenizer = load_tokenizer(folder / "tokenizer.json", self._serving.prompt_format)
        self._formatter = make_formatter(self._tokenizer, self._serving, facts.bos_id)
        engine, workers = open_engine(folder, facts, self._serving)
        self._engine = ProvenEngine(engine, partial(replay, folder, self._tokenizer, facts.bos_id, engine))
        if facts.runtime != TENSORRT_LLM:  # that one is asked through Triton, which may not listen yet
            self._engine.prove()
        self._scheduler = Scheduler(workers, self._serving.queue_limit)
        self._metrics = Metrics(
            pb_utils,
            model=parameters["model"],
            slo_ms=self._serving.slo_ms,
            load=self._scheduler.load,
            engine_measures=facts.runtime == TENSORRT_LLM,
        )

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            received = time.monotonic()
            answer = TritonAnswer(request)
            try:
                self._take(request, answer, received)
            except CompletionError as error:
                answer.fail(error)
                self._metrics.ended(Ended(None, 0.0))
            except Exception as error:  # else the client would wait for ever
                log.exception("request failed id=%s", request.request_id())
                answer.fail(CompletionError(str(error)))

    def finalize(self) -> None:
        self._scheduler.close()
        self._engine.close()
        self._metrics.close()

    def _take(self, request: Any, answer: TritonAnswer, received: float) -> None:
        cancel = _read(request, "cancel")
        if cancel:
            self._scheduler.cancel(cancel)
            answer.finish("", "")
            return
        prompt = _read(request, "prompt")
        options = parse_options(_read(request, "options").encode(), self._serving)
        prepared = self._formatter.prepare(prompt, _read(request, "suffix"))
        self._scheduler.submit(
            CompletionJob(
                id=request.request_id(),
                prepared=prepared,
                options=options,
                rules=StopRules(options.stop_mode, options.stop, base_indent(prompt)),
                engine=self._engine,
                next_text=make_next_text(self._tokenizer, prepared.tokens),
                answer=answer,
                received=received,
                on_end=_ignore if request.request_id().startswith(WARM_UP_ID) else self._metrics.ended,
            )
        )


def open_engine(folder: Path, facts: EngineFacts, serving: ServingOptions) -> tuple[Engine, int]:
    """The engine in ``folder``, and how many requests it works on at once."""
    if facts.runtime == TENSORRT_LLM:
        address = os.environ.get(ADDRESS_VARIABLE, f"127.0.0.1:{PORT_TRITON_HTTP}")
        return TrtllmEngine(address, facts), min(read_build(folder).batch_size, MOST_WORKERS)
    threads = serving.inter_threads
    return CTranslate2Engine(folder, facts, inter_threads=threads, intra_threads=serving.intra_threads), threads


def _ignore(ended: Ended) -> None:
    """Warm-up requests are not measured."""


def _read(request: Any, name: str) -> str:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return ""
    values = tensor.as_numpy().reshape(-1)
    if len(values) != 1:
        raise InvalidRequest(f"{name} must have one element, not {len(values)}")
    value = values[0]
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{name} is not UTF-8: {error}") from error


def _response(text: str, details: str) -> Any:
    return pb_utils.InferenceResponse(
        [_tensor("text", text), _tensor("details", details)],
    )


def _tensor(name: str, text: str) -> Any:
    return pb_utils.Tensor(name, np.array([text.encode()], dtype=object))
