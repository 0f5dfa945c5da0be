"""A stand-in for TensorRT-LLM's C++ backend of Triton: a test asset, never part of an image.

Triton takes a folder ``tensorrtllm`` with a ``model.py`` among its backends for a backend written in Python, so the
very configuration that Hotstart generates for the real backend is loaded here: same tensors, types, shapes, transaction
policy and batching. What the real backend does with a request was read from its source, and is done here likewise:

- responses hold the new tokens of one beam, ``[1, 1, n]``, and ``sequence_length`` ``[1, 1]``; an end token is last;
- ``stop`` with the id of a running request ends it; the request with ``stop`` is answered empty, also where none runs;
- a client that left is looked for every ``cancellation_check_period_ms``;
- ``return_perf_metrics`` adds times and blocks to the last response;
- a request that cannot be served gets ``Executor failed process requestId``, and what is missing is named.

``rank0.engine`` is an uncompressed tar of a CTranslate2 model, as ``tests.support.standin_engine`` writes it.
"""

from __future__ import annotations

import json
import tarfile
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
TOKENS_PER_BLOCK = 32


class Generation:
    """One running request."""

    def __init__(self, request: Any) -> None:
        self.request = request
        self.stopped = threading.Event()
        self.lock = threading.Lock()
        self.over = False


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        given = {name: entry["string_value"] for name, entry in config["parameters"].items()}
        for name in ("gpt_model_type", "tokenizer_dir", "xgrammar_tokenizer_info_path", "guided_decoding_backend"):
            if name not in given:
                raise pb_utils.TritonModelException(f"Cannot find parameter with name: {name}")
        folder = Path(given["gpt_model_path"])
        build = json.loads((folder / "config.json").read_text())
        engine = (folder / "rank0.engine").read_bytes()
        if not tarfile.is_tarfile(folder / "rank0.engine"):  # tests put the words of the real library there
            raise pb_utils.TritonModelException(engine[:1000].decode(errors="replace"))
        self._scratch = tempfile.TemporaryDirectory(prefix="standin-")
        with tarfile.open(folder / "rank0.engine") as archive:
            archive.extractall(self._scratch.name, filter="data")
        self._names = json.loads((Path(self._scratch.name) / "vocabulary.json").read_text())
        self._batch = int(build["build_config"]["max_batch_size"])
        self._longest = int(build["build_config"]["max_seq_len"])
        self._generator = self._load(self._batch)
        self._pool = ThreadPoolExecutor(self._batch)
        self._lock = threading.Lock()
        self._seeding = threading.Lock()
        self._running: dict[str, Generation] = {}
        self._seen: dict[tuple[int, ...], int] = {}
        self._period = int(given["cancellation_check_period_ms"]) / 1000
        self._closing = threading.Event()
        self._poller = threading.Thread(target=self._poll, daemon=True)
        self._poller.start()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            if _value(request, "stop", False):
                self._stop(request.request_id())
                sender.send(flags=FINAL)
                continue
            generation = Generation(request)
            with self._lock:
                self._running[request.request_id()] = generation
            self._pool.submit(self._serve, generation, sender, time.monotonic_ns())

    def finalize(self) -> None:
        self._closing.set()
        self._pool.shutdown()
        self._poller.join()
        self._scratch.cleanup()

    def _load(self, workers: int) -> Any:
        return ctranslate2.Generator(self._scratch.name, device="cpu", inter_threads=workers, intra_threads=1)

    def _stop(self, request_id: str) -> None:
        with self._lock:
            if request_id in self._running:
                self._running[request_id].stopped.set()

    def _poll(self) -> None:
        while not self._closing.wait(self._period):
            with self._lock:  # never held while Triton is asked: it answers only once ``execute`` has returned
                running = list(self._running.values())
            for generation in running:
                with generation.lock:
                    if not generation.over and generation.request.is_cancelled():
                        generation.stopped.set()

    def _serve(self, generation: Generation, sender: Any, arrived: int) -> None:
        request = generation.request
        scheduled = time.monotonic_ns()
        last: list[int] = []
        try:
            prompt = [int(token) for token in _tensor(request, "input_ids").reshape(-1)]
            self._check(request, prompt)
            self._generate(generation, prompt, lambda tokens: self._hand_over(sender, last, tokens))
            response = _response(last, self._metrics(prompt, arrived, scheduled) if _wants_metrics(request) else {})
        except Exception as error:  # noqa: BLE001  # as the backend: whatever it is, the caller hears of it
            message = f"Executor failed process requestId 1 due to the following error: {error}"
            response = pb_utils.InferenceResponse(error=pb_utils.TritonError(message))
        with self._lock:
            self._running.pop(request.request_id(), None)
        with generation.lock:  # Triton frees the request with its final response
            generation.over = True
            sender.send(response, flags=FINAL)

    def _check(self, request: Any, prompt: list[int]) -> None:
        wanted = int(_value(request, "request_output_len", 0))
        if int(_value(request, "input_lengths", 0)) != len(prompt):
            raise ValueError("input_lengths is not the length of input_ids")
        if len(prompt) + wanted > self._longest:
            raise ValueError(f"Prompt length ({len(prompt)}) + max new tokens ({wanted}) exceed {self._longest}")
        if not _value(request, "streaming", False):
            raise ValueError("this stand-in answers streaming requests only")

    def _hand_over(self, sender: Any, last: list[int], tokens: list[int]) -> None:
        """Sends what came before and keeps what came now: the last of them goes with the final flag."""
        if last:
            sender.send(_response(last, {}))
        last[:] = tokens

    def _generate(self, generation: Generation, prompt: list[int], hand_over: Any) -> None:
        request = generation.request
        end = int(_value(request, "end_id", -1))
        top_k, seed = int(_value(request, "runtime_top_k", 0)), _value(request, "seed", None)
        sampling: dict[str, Any] = {"sampling_topk": 1}
        if top_k != 1:
            sampling = {
                "sampling_topk": top_k,
                "sampling_topp": float(_value(request, "runtime_top_p", 1.0)),
                "sampling_temperature": float(_value(request, "temperature", 1.0)),
            }

        def on_step(step: Any) -> bool:
            if generation.stopped.is_set():
                return True
            hand_over([int(step.token_id)])
            return False

        def run(generator: Any) -> None:
            generator.generate_batch(
                [[self._names[token] for token in prompt]],
                max_length=int(_value(request, "request_output_len", 0)),
                include_prompt_in_result=False,
                end_token=[end] if end >= 0 else [],
                return_end_token=True,
                callback=on_step,
                **sampling,
            )

        if top_k == 1 or seed is None:
            run(self._generator)
            return
        with self._seeding:
            ctranslate2.set_random_seed(int(seed))
            run(self._load(1))

    def _metrics(self, prompt: list[int], arrived: int, scheduled: int) -> dict[str, Any]:
        blocks = len(prompt) // TOKENS_PER_BLOCK
        with self._lock:
            key = tuple(prompt)
            reused = blocks if key in self._seen else 0
            self._seen[key] = 1
        now = time.monotonic_ns()
        times = {"arrival_time_ns": arrived, "first_scheduled_time_ns": scheduled, "first_token_time_ns": now}
        return {
            "kv_cache_alloc_new_blocks": np.array([[blocks + 1 - reused]], np.int32),
            "kv_cache_reused_blocks": np.array([[reused]], np.int32),
            "kv_cache_alloc_total_blocks": np.array([[blocks + 1]], np.int32),
            **{name: np.array([[value]], np.int64) for name, value in {**times, "last_token_time_ns": now}.items()},
            "acceptance_rate": np.array([[0.0]], np.float32),
            "total_accepted_draft_tokens": np.array([[0]], np.int32),
            "total_draft_tokens": np.array([[0]], np.int32),
        }


def _wants_metrics(request: Any) -> bool:
    return bool(_value(request, "return_perf_metrics", False))


def _tensor(request: Any, name: str) -> Any:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        raise ValueError(f"{name} is not present in the request.")
    return tensor.as_numpy()


def _value(request: Any, name: str, default: Any) -> Any:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return default if tensor is None else tensor.as_numpy().reshape(-1)[0]


def _response(tokens: list[int], more: dict[str, Any]) -> Any:
    ids = np.array([[tokens]], np.int32).reshape(1, 1, len(tokens))
    tensors = {"output_ids": ids, "sequence_length": np.array([[len(tokens)]], np.int32), **more}
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, value) for name, value in tensors.items()])
