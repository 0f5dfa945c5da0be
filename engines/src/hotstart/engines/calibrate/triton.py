"""The completion model in a Triton of the builder's own container: how an engine of TensorRT-LLM is measured.

Its runtime can only be had inside Triton's backend, so Triton runs here as in a pod, but listens on the loopback alone.
Requests go through HTTP's ``generate``, as the pod agent's warm-up does; the millisecond it adds is in the figures.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sysconfig
import tempfile
import threading
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import aiohttp
from hotstart.engines.calibrate.samples import CalibrationFailed, CannotCalibrate, Timing, make_timing
from hotstart.engines.calibrate.vocabulary import read_vocabulary
from hotstart.engines.pod_agent.triton_client import TritonClient, TritonGone, TritonRefused
from hotstart.engines.triton.completion.names import ADDRESS_VARIABLE, WARM_UP_ID
from hotstart.engines.triton.repository import ModelBundle, make_repository
from hotstart.engines.triton.server import (
    Installation,
    ServerPlan,
    find_container,
    find_installation,
    make_command,
    make_environment,
)
from hotstart.engines.triton.trtllm_config import TRTLLM_MODEL, read_build
from hotstart.exchange.messages import ServingOptions, StopMode
from tokenizers import Tokenizer

T = TypeVar("T")
START_SECONDS = 300.0  # Triton starts and loads the engine
END_SECONDS = 20.0
TRIES = 3  # of a request whose text the engine ended before its limit
LOG_CHARACTERS = 600


class TritonCompletion:
    """Implements ``measure.Submit`` for a Triton that serves already."""

    def __init__(self, tokenizer: Path, *, http: str, metrics: str, key: str = "") -> None:
        self.vocabulary = read_vocabulary(tokenizer)
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._addresses = {"http": http, "metrics": metrics, "key": key}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="triton-client", daemon=True)
        self._numbers = itertools.count()

    def __enter__(self) -> TritonCompletion:
        self._thread.start()
        self._session = self._wait(self._open())
        self.client = TritonClient(self._session, **self._addresses)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wait(self._session.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def load(self, *models: str) -> None:
        """Waits until Triton is live, and has it load the models.

        Raises:
            CalibrationFailed: it refuses, goes away, or takes too long.
        """

        async def bring_up() -> None:
            async with asyncio.timeout(START_SECONDS):
                await self.client.wait_live()
                for model in models:
                    await self.client.load(model)

        try:
            self._wait(bring_up())
        except (TritonRefused, TritonGone, TimeoutError) as error:
            raise CalibrationFailed(f"Triton does not load the engine: {error!r}") from error

    def __call__(self, prompt: Sequence[int], new_tokens: int) -> Timing:
        options = {"max_tokens": new_tokens, "temperature": 0.0, "stop_mode": StopMode.NONE.value}
        for each in itertools.islice(rotate(prompt), TRIES):
            text = make_text(self._tokenizer, each)
            name = f"{WARM_UP_ID}-calibrate-{next(self._numbers)}"
            began = time.monotonic()
            try:
                _, details = self._wait(self.client.generate(request_id=name, prompt=text, suffix="", options=options))
            except (TritonRefused, TritonGone) as error:
                raise CalibrationFailed(f"a request failed: {error}") from error
            latency_ms = (time.monotonic() - began) * 1000
            if details["completion_tokens"] == new_tokens:
                return make_timing(details, new_tokens, latency_ms)
        raise CalibrationFailed(f"the engine ends {TRIES} texts of chance before {new_tokens} tokens")

    async def _open(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def rotate(prompt: Sequence[int]) -> itertools.chain[Sequence[int]]:
    """The prompt, and others of its tokens: with another beginning each."""
    return itertools.chain((prompt,), ([*prompt[at:], *prompt[:at]] for at in range(1, len(prompt))))


def make_text(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """A text of as many tokens: tokens of chance, once they are text, are seldom read as the same ones again."""
    text = tokenizer.decode([*tokens, *reversed(tokens)])
    encoded = tokenizer.encode(text, add_special_tokens=False)
    return text if len(encoded.ids) <= len(tokens) else text[: encoded.offsets[len(tokens) - 1][1]]


class OwnTriton:
    """A Triton of our own with the engine in it; entered, it is a ``TritonCompletion``."""

    def __init__(self, folder: Path, serving: ServingOptions, installation: Installation | None = None) -> None:
        self._installation = installation or find_container() or find_installation(Path(sysconfig.get_path("purelib")))
        self._folder = folder
        self._serving = serving.model_copy(update={"stop": StopMode.NONE, "stop_strings": ()})
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> TritonCompletion:
        if self._installation is None:
            raise CannotCalibrate("tritonserver is not in this image: an engine of TensorRT-LLM is measured in it")
        with contextlib.ExitStack() as stack:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="calibrate-")))
            plan = self._write(root)
            addresses = {"http": f"127.0.0.1:{plan.http_port}", "metrics": f"127.0.0.1:{plan.metrics_port}"}
            log = stack.enter_context((root / "triton.log").open("ab"))
            server = subprocess.Popen(
                make_command(plan, self._installation),
                env=make_environment(self._installation, {**os.environ, ADDRESS_VARIABLE: addresses["http"]}),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            stack.callback(end, server)
            completion = stack.enter_context(TritonCompletion(self._folder / "tokenizer.json", **addresses))
            try:
                completion.load(*(() if plan.ranks > 1 else (TRTLLM_MODEL,)), "completion")
            except CalibrationFailed as failure:
                tail = " ".join((root / "triton.log").read_text(errors="replace").split())[-LOG_CHARACTERS:]
                raise CalibrationFailed(f"{failure}; its last words: {tail}") from failure
            self._stack = stack.pop_all()
        return completion

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _write(self, root: Path) -> ServerPlan:
        """The model repository in ``root``, and the server for it."""
        build = read_build(self._folder)
        bundle = ModelBundle("calibrate/calibrate", "0" * 64, self._folder, self._serving, build)
        repository = root / "repository"
        for path, text in make_repository(bundle).items():
            (repository / path).parent.mkdir(parents=True, exist_ok=True)
            (repository / path).write_text(text)
        http, grpc, metrics = free_ports(3)
        return ServerPlan(
            repository,
            address="127.0.0.1",
            http_port=http,
            grpc_port=grpc,
            metrics_port=metrics,
            ranks=build.tensor_parallel,
        )


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nothing listens on."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [int(listener.getsockname()[1]) for listener in listeners]


def end(server: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL to what is left of its group: a stub may outlive its server."""
    server.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(END_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()
