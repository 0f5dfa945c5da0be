"""What a token of TensorRT-LLM costs the completion model: CPU time of its process by token, alone and 64 at once.

The backend is a process of its own that answers at once, each token a message of ``generate_stream`` as Triton writes
it. Everything else is the completion model's own: queue, HTTP, JSON, text, stops. Its threads share one lock, so a
second divided by this cost is the most tokens/s that one pod can hand on; a GPU gives some thousand.
"""

from __future__ import annotations

import multiprocessing
import socketserver
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import record

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hotstart.engines.calibrate.local import WaitedAnswer
from hotstart.engines.triton.completion.engine import EngineFacts
from hotstart.engines.triton.completion.engine_trtllm import TrtllmEngine
from hotstart.engines.triton.completion.job import CompletionJob
from hotstart.engines.triton.completion.options import RequestOptions
from hotstart.engines.triton.completion.prompts import Prepared
from hotstart.engines.triton.completion.scheduler import Scheduler
from hotstart.engines.triton.completion.stops import StopRules
from hotstart.exchange.messages import StopMode
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from tests.support.tiny_checkpoint import make_tokenizer_json

RUNS = 5
TOKENS = 32  # of each completion
PROMPT = tuple(range(300, 428))
AT_ONCE = (1, 64)
COMPLETIONS = 640
OPTIONS = RequestOptions(max_tokens=TOKENS, stop=("\n\n\n",))
TEXT = "    total = value + other.left * 2  # of the window\n"
TIMES = '"arrival_time_ns":1,"first_scheduled_time_ns":2,"first_token_time_ns":3,"last_token_time_ns":4'
BLOCKS = '"kv_cache_alloc_new_blocks":4,"kv_cache_reused_blocks":0,"kv_cache_alloc_total_blocks":4'


def make_answer(ids: Sequence[int]) -> bytes:
    """The whole answer as Triton writes it, a chunk for each token."""
    events = []
    for number in range(TOKENS):
        more = f",{TIMES},{BLOCKS}" if number == TOKENS - 1 else ""
        values = f'"model_name":"tensorrt_llm","model_version":"1","output_ids":{ids[number % len(ids)]}'
        events.append(f'data: {{{values},"sequence_length":1{more}}}\n\n')
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = (f"{len(event):x}\r\n{event}\r\n" for event in events)
    return (head + "".join(chunks) + "0\r\n\r\n").encode()


class Backend(socketserver.StreamRequestHandler):
    """Answers each request at once."""

    answer = b""

    def handle(self) -> None:
        length = 0
        while (line := self.rfile.readline().strip()) != b"":
            if line.lower().startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        self.rfile.read(length)
        self.wfile.write(self.answer)


class Server(socketserver.ThreadingTCPServer):
    request_queue_size = 256
    daemon_threads = True


def serve(answer: bytes, port: multiprocessing.Queue[int]) -> None:
    """The backend's process, until it is ended."""
    Backend.answer = answer
    with Server(("127.0.0.1", 0), Backend) as server:
        port.put(server.server_address[1])
        server.serve_forever()


def run_engine(engine: TrtllmEngine, at_once: int) -> None:
    """All completions, by the engine alone."""
    with ThreadPoolExecutor(at_once) as pool:
        for done in [pool.submit(engine.generate, PROMPT, OPTIONS, _go_on) for _ in range(COMPLETIONS)]:
            done.result()


def run_completions(engine: TrtllmEngine, tokenizer: Tokenizer, at_once: int) -> None:
    """All completions, from the queue to the answer."""
    scheduler = Scheduler(at_once, COMPLETIONS)
    answers = [WaitedAnswer() for _ in range(COMPLETIONS)]
    for number, answer in enumerate(answers):
        stream = DecodeStream(ids=list(PROMPT[-4:]), skip_special_tokens=True)
        scheduler.submit(
            CompletionJob(
                id=str(number),
                prepared=Prepared(PROMPT, 0),
                options=OPTIONS,
                rules=StopRules(StopMode.BLOCK, OPTIONS.stop),
                engine=engine,
                next_text=partial(stream.step, tokenizer),
                answer=answer,
                received=time.monotonic(),
                on_end=lambda ended: None,
            )
        )
    for answer in answers:
        answer.done.wait()
        assert f'"completion_tokens": {TOKENS}' in answer.details, answer.details or answer.error
    scheduler.close()


def _go_on(token: int) -> bool:
    return False


def measure(work: partial[None]) -> tuple[float, float]:
    """Microseconds of CPU a token in this process, and tokens/s."""
    cpu, began = time.process_time(), time.perf_counter()
    work()
    tokens = COMPLETIONS * TOKENS
    return (time.process_time() - cpu) / tokens * 1e6, tokens / (time.perf_counter() - began)


def main() -> None:
    """Measures and records."""
    tokenizer = Tokenizer.from_str(make_tokenizer_json())
    context = multiprocessing.get_context("spawn")
    port: multiprocessing.Queue[int] = context.Queue()
    answer = make_answer(tokenizer.encode(TEXT, add_special_tokens=False).ids)
    backend = context.Process(target=serve, args=(answer, port), daemon=True)
    backend.start()
    figures: dict[str, float] = {"runs": RUNS, "completions": COMPLETIONS, "tokens_each": TOKENS}
    engine = TrtllmEngine(f"127.0.0.1:{port.get()}", EngineFacts("tensorrt_llm", 4096, (0,), None))
    try:
        for at_once in AT_ONCE:
            for name, work in (
                ("engine", partial(run_engine, engine, at_once)),
                ("completion", partial(run_completions, engine, tokenizer, at_once)),
            ):
                found = [measure(work) for _ in range(RUNS + 1)][1:]  # the first is the warm-up
                figures[f"{name}_{at_once}_cpu_us_a_token"] = record.median([cpu for cpu, _ in found])
                figures[f"{name}_{at_once}_tokens_per_s"] = record.median([speed for _, speed in found])
    finally:
        engine.close()
        backend.terminate()
        backend.join()
    record.write("tensorrt_llm_path", figures)


if __name__ == "__main__":
    main()
