"""What the completion model sends to TensorRT-LLM and reads from it, with Triton's HTTP port played by a test."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hotstart.engines.triton import trtllm_tensors as names
from hotstart.engines.triton.completion import engine_trtllm as module
from hotstart.engines.triton.completion.engine import NOTHING_MEASURED, EngineFacts, Measured
from hotstart.engines.triton.completion.engine_trtllm import TrtllmEngine, make_inputs, make_stop_inputs
from hotstart.engines.triton.completion.errors import CompletionError, Overloaded
from hotstart.engines.triton.completion.options import RequestOptions
from hypothesis import given
from hypothesis import strategies as st

from tests.support.triton import free_port

FACTS = EngineFacts("tensorrt_llm", 4096, (2, 5), None)
BACKSTOP = 20.0


@dataclass
class FakeResponse:
    values: dict[str, Any] = field(default_factory=dict)
    failure: str = ""

    def message(self) -> dict[str, Any]:
        """As Triton writes it: one value without brackets, of an error nothing else."""
        if self.failure:
            return {"error": self.failure}
        plain = {name: value[0] if len(value) == 1 else value for name, value in self.values.items() if value}
        return {"model_name": "tensorrt_llm", "model_version": "1", **plain}


def token_response(*tokens: int, padding: int = 0, **more: int) -> FakeResponse:
    ids = [*tokens, *[-1] * padding]
    return FakeResponse(
        {names.OUTPUT_IDS: ids, names.SEQUENCE_LENGTH: [len(tokens)], **{name: [more[name]] for name in more}}
    )


@dataclass
class FakeTriton:
    """Triton's HTTP port, whose model plays ``script`` and can be stopped."""

    script: Callable[[FakeTriton], Iterator[FakeResponse]]
    requests: list[dict[str, Any]] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)
    stop_fails: bool = False
    stops_lost: int = 0  # so many stops come before their request, and end nothing
    stops_held: int = 0  # so many stops are not answered before ``released``, and end nothing
    released: threading.Event = field(default_factory=threading.Event)

    def answer(self, request: dict[str, Any]) -> Iterator[FakeResponse]:
        self.requests.append(request)
        if names.STOP not in request:
            return self.script(self)
        if self.stops_held > 0:
            self.stops_held -= 1
            self.released.wait(BACKSTOP)
        elif self.stops_lost > 0:
            self.stops_lost -= 1
        else:
            self.stopped.set()
        return iter([FakeResponse(failure="no such request")] if self.stop_fails else [])

    @contextlib.contextmanager
    def serve(self) -> Iterator[str]:
        triton = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:  # http.server's name
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # the script cuts it off, or its client left
                    for response in triton.answer({"path": self.path, **request}):
                        text = f"data: {json.dumps(response.message())}\n\n".encode()
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(text), text))
                    self.wfile.write(b"0\r\n\r\n")
                self.close_connection = True

            def log_message(self, *args: Any) -> None: ...

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                yield f"127.0.0.1:{server.server_port}"
            finally:
                server.shutdown()
                thread.join()


def plays(*responses: FakeResponse) -> FakeTriton:
    return FakeTriton(lambda triton: iter(responses))


def run(
    triton: FakeTriton,
    on_token: Callable[[int], bool] = lambda token: False,
    cancelled: Callable[[], bool] = lambda: False,
) -> tuple[list[int], Measured]:
    seen: list[int] = []

    def take(token: int) -> bool:
        seen.append(token)
        return on_token(token)

    with triton.serve() as address:
        engine = TrtllmEngine(address, FACTS)
        try:
            measured = engine.generate([7, 8, 9], RequestOptions(max_tokens=16), take, cancelled)
        finally:
            engine.close()
    return seen, measured


def test_tokens_come_one_by_one_however_the_engine_groups_them() -> None:
    triton = plays(token_response(10, 11), token_response(12, padding=3), token_response(), FakeResponse())
    seen, measured = run(triton)
    assert seen == [10, 11, 12]
    assert measured == NOTHING_MEASURED
    assert len(triton.requests) == 1, "nothing is stopped that ends by itself"


def test_a_request_is_what_the_backend_takes() -> None:
    triton = plays(token_response(10))
    run(triton)
    [request] = triton.requests
    assert request.pop("path") == "/v2/models/tensorrt_llm/generate_stream"
    assert request.pop("id") != ""
    declared = {tensor.name: tensor for tensor in names.INPUTS}
    kinds = {"TYPE_INT32": int, "TYPE_BOOL": bool, "TYPE_FP32": float, "TYPE_UINT64": int}
    for name, values in request.items():
        assert len(values) == (3 if name == "input_ids" else 1), name
        assert {type(value) for value in values} == {kinds[declared[name].data_type]}, name
    required = {tensor.name for tensor in names.INPUTS if not tensor.optional}
    assert required <= set(request) and required <= set(make_stop_inputs())


@pytest.mark.parametrize("end", FACTS.eos_ids)
def test_any_of_the_tokens_that_end_a_text_ends_it_unseen(end: int) -> None:
    """The backend knows one of them; another one has to be stopped for."""
    triton = plays(token_response(10), token_response(end, 11), token_response(12))
    seen, _ = run(triton)
    assert seen == [10]
    assert triton.stopped.is_set()


def test_a_stop_on_text_sends_one_stop_with_the_same_id_and_waits_for_the_end() -> None:
    ended = threading.Event()

    def script(triton: FakeTriton) -> Iterator[FakeResponse]:
        yield token_response(10)
        assert triton.stopped.wait(BACKSTOP), "the stop comes while the generation goes on"
        yield token_response(11)
        yield token_response(12)
        ended.set()

    triton = FakeTriton(script)
    seen, _ = run(triton, on_token=lambda token: True)
    assert seen == [10]
    assert ended.is_set()
    generation, stop = triton.requests
    assert stop["id"] == generation["id"] != ""
    assert stop[names.STOP] == [True]


def test_a_cancellation_is_obeyed_before_the_first_token() -> None:
    def script(triton: FakeTriton) -> Iterator[FakeResponse]:
        assert triton.stopped.wait(BACKSTOP)
        yield FakeResponse()

    left = threading.Event()
    left.set()
    seen, _ = run(FakeTriton(script), cancelled=left.is_set)
    assert seen == []


def test_a_stop_that_overtook_its_request_is_sent_again() -> None:
    def script(triton: FakeTriton) -> Iterator[FakeResponse]:
        assert triton.stopped.wait(BACKSTOP)
        yield FakeResponse()

    triton = FakeTriton(script, stops_lost=2)
    seen, _ = run(triton, cancelled=lambda: True)
    assert seen == []
    assert len(triton.requests) >= 4


def test_one_stop_without_an_answer_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOP_SECONDS", BACKSTOP)

    def script(triton: FakeTriton) -> Iterator[FakeResponse]:
        yield FakeResponse()
        assert triton.stopped.wait(BACKSTOP / 2), "the second stop comes while the first one waits"

    triton = FakeTriton(script, stops_held=1)
    with triton.serve() as address, ThreadPoolExecutor(2) as pool:
        engine = TrtllmEngine(address, FACTS)
        options = RequestOptions(max_tokens=16)
        for ended in [pool.submit(engine.generate, [7], options, lambda token: False, lambda: True) for _ in range(2)]:
            ended.result()
        triton.released.set()
        engine.close()


def test_where_no_stop_gets_through_the_client_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOP_SECONDS", 0.1)
    left = threading.Event()

    def script(triton: FakeTriton) -> Iterator[FakeResponse]:
        try:
            for token in itertools.count(10):
                yield token_response(token)
        finally:
            left.set()
            triton.released.set()

    seen, _ = run(FakeTriton(script, stops_held=1), on_token=lambda token: True)
    assert seen == [10]
    assert left.wait(BACKSTOP), "Triton sees it"


def test_what_triton_cannot_take_any_more_is_for_another_replica() -> None:
    def script(triton: FakeTriton) -> Iterator[FakeResponse]:
        raise ConnectionAbortedError  # before the first response
        yield

    with pytest.raises(Overloaded, match=r"^overloaded: .*ask another one: .*generate_stream at .*IncompleteRead"):
        run(FakeTriton(script))
    engine = TrtllmEngine(f"127.0.0.1:{free_port()}", FACTS)
    with pytest.raises(Overloaded, match="Connection refused"):
        engine.generate([7], RequestOptions(max_tokens=16), lambda token: False)
    engine.close()


def test_a_triton_that_goes_away_in_the_middle_fails_the_request() -> None:
    def script(triton: FakeTriton) -> Iterator[FakeResponse]:
        yield token_response(10)
        raise ConnectionAbortedError  # the answer is cut off

    with pytest.raises(CompletionError, match=r"^internal: .*generate_stream at .*IncompleteRead"):
        run(FakeTriton(script))


def test_tokens_without_their_number_are_refused() -> None:
    with pytest.raises(CompletionError, match="output_ids and no sequence_length"):
        run(plays(FakeResponse({names.OUTPUT_IDS: [10]})))


def test_a_stop_that_is_refused_only_lets_the_generation_run_on() -> None:
    triton = plays(token_response(10), token_response(11), token_response(12))
    triton.stop_fails = True
    seen, _ = run(triton, on_token=lambda token: True)
    assert seen == [10]


def test_an_error_is_raised_in_the_backend_s_words() -> None:
    words = "Executor failed process requestId 7 due to the following error: Prompt length exceeds"
    with pytest.raises(CompletionError, match="internal: the engine failed: Executor failed process requestId 7"):
        run(plays(token_response(10), FakeResponse(failure=words)))


def test_queue_time_and_reused_blocks_are_of_the_last_response() -> None:
    more = {names.ARRIVAL: 5_000_000, names.FIRST_SCHEDULED: 12_500_000, names.REUSED_BLOCKS: 3}
    _, measured = run(plays(token_response(10), token_response(11, **more)))
    assert measured == Measured(queue_ms=7.5, reused_blocks=3)


def test_two_generations_never_share_an_id() -> None:
    triton = plays(token_response(10))
    run(triton)
    run(triton)
    assert len({request["id"] for request in triton.requests}) == 2


@given(
    st.builds(
        RequestOptions,
        max_tokens=st.integers(1, 4096),
        temperature=st.one_of(st.just(0.0), st.floats(0.01, 2.0)),
        top_p=st.floats(0.01, 1.0),
        top_k=st.integers(0, 2**31 - 1),
        seed=st.one_of(st.none(), st.integers(0, 2**32 - 1)),
    ),
    st.integers(0, 2**32 - 1),
)
def test_greedy_says_nothing_of_chance_and_sampling_always_has_a_seed(options: RequestOptions, chance: int) -> None:
    inputs = make_inputs([1, 2], options, FACTS, chance=chance)
    assert inputs[names.OUTPUT_LENGTH] == [options.max_tokens]
    assert inputs[names.END_ID] == inputs[names.PAD_ID] == (2,)
    if options.temperature == 0:
        assert inputs[names.TOP_K] == [1]
        assert not {names.TEMPERATURE, names.TOP_P, names.SEED} & set(inputs)
    else:
        assert inputs[names.SEED] == [chance if options.seed is None else options.seed]
        assert inputs[names.TOP_P] == [options.top_p]
        assert inputs[names.TOP_K] == [options.top_k]
        assert inputs[names.TEMPERATURE] == [options.temperature]


def test_without_end_tokens_the_engine_is_told_of_none() -> None:
    inputs = make_inputs([1, 2], RequestOptions(max_tokens=4), replace(FACTS, eos_ids=()), chance=0)
    assert not {names.END_ID, names.PAD_ID} & set(inputs)
