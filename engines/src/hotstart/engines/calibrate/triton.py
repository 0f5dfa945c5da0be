"""The completion model in a Triton of the builder's own container: how an engine of TensorRT-LLM is measured.

Its runtime can only be had inside Triton's backend, so Triton runs here as in a pod, but listens on the loopback alone.
Requests go through HTTP's ``generate``, as the pod agent's warm-up does; the millisecond it adds is in the figures. The
engine runs on to its limit of tokens: it is served from a folder that says that no token ends a text.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
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
from hotstart.engines.errors import EngineError, Reason, Terminal
from hotstart.engines.pod_agent.load_failures import find_replay_words
from hotstart.engines.pod_agent.triton_client import TritonClient, TritonGone, TritonRefused, TritonSlow
from hotstart.engines.triton.completion.engine import read_facts
from hotstart.engines.triton.completion.names import ADDRESS_VARIABLE, WARM_UP_ID
from hotstart.engines.triton.completion.prompts import make_formatter
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
ADDITIONS = 64  # to a text that was cut too short: tries
DOUBLINGS = 6  # of a text that is read as fewer tokens than it was made of
LOG_CHARACTERS = 600
PORTS = range(15_000, 30_000)


class TritonCompletion:
    """Implements ``measure.Submit`` for a Triton that serves already.

    ``own_tokens``: what the prompt's format adds to a text, which is as much shorter; ``end_tokens`` are in no prompt.
    """

    def __init__(
        self,
        tokenizer: Path,
        *,
        http: str,
        metrics: str,
        key: str = "",
        own_tokens: int = 0,
        end_tokens: Sequence[int] = (),
    ) -> None:
        self.vocabulary = read_vocabulary(tokenizer, end_tokens)
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._own_tokens = own_tokens
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
            Terminal: VerificationFailed, the engine's golden questions are answered otherwise.
        """

        async def bring_up() -> None:
            async with asyncio.timeout(START_SECONDS):
                await self.client.wait_live()
                for model in models:
                    await self.client.load(model)

        try:
            self._wait(bring_up())
        except (TritonRefused, TritonSlow, TritonGone, TimeoutError) as error:
            raise make_failure("Triton does not load the engine", error) from error

    def __call__(self, prompt: Sequence[int], new_tokens: int) -> Timing:
        options = {"max_tokens": new_tokens, "temperature": 0.0, "stop_mode": StopMode.NONE.value}
        text = make_text(self._tokenizer, prompt[: max(1, len(prompt) - self._own_tokens)])
        name = f"{WARM_UP_ID}-calibrate-{next(self._numbers)}"
        began = time.monotonic()
        try:
            _, details = self._wait(self.client.generate(request_id=name, prompt=text, suffix="", options=options))
        except (TritonRefused, TritonSlow, TritonGone) as error:
            raise make_failure("a request failed", error) from error
        return make_timing(details, len(prompt), new_tokens, (time.monotonic() - began) * 1000)

    async def _open(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def make_failure(what: str, error: Exception) -> CalibrationFailed | EngineError:
    """What Triton's error is: of a calibration, or of the engine, which does not answer as it was verified."""
    replay = find_replay_words(str(error))
    if replay is None:
        return CalibrationFailed(f"{what}: {error!r}")
    message = f"The engine was built, but as Triton serves it it is not its checkpoint. {replay}"
    return Terminal(Reason.VERIFICATION_FAILED, message)


def make_text(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """A text that is read as ``len(tokens)`` tokens, hardly ever one fewer, never more.

    Tokens of chance, once they are text, are seldom read as the same ones again; nor are those of a text that was cut.
    What a cut text lacks is added token by token.
    """

    def count(some: str) -> int:
        return len(tokenizer.encode(some, add_special_tokens=False).ids)

    text = tokenizer.decode(tokens)
    for _ in range(DOUBLINGS):
        encoded = tokenizer.encode(text, add_special_tokens=False)
        if len(encoded.ids) > len(tokens):
            break
        text += text
    cuts = (text[:end] for _, end in reversed(encoded.offsets[: len(tokens)]))
    text = next((cut for cut in cuts if count(cut) <= len(tokens)), "")
    read = count(text)
    for token in tokens[:ADDITIONS]:
        if read == len(tokens):
            break
        longer = text + tokenizer.decode([token])
        if read < (more := count(longer)) <= len(tokens):
            text, read = longer, more
    return text


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
            completion = stack.enter_context(self._make_completion(addresses))
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

    def _make_completion(self, addresses: dict[str, str]) -> TritonCompletion:
        tokenizer, facts = self._folder / "tokenizer.json", read_facts(self._folder)
        formatter = make_formatter(Tokenizer.from_file(str(tokenizer)), self._serving, facts.bos_id)
        return TritonCompletion(tokenizer, **addresses, own_tokens=formatter.own_tokens, end_tokens=facts.eos_ids)

    def _write(self, root: Path) -> ServerPlan:
        """The model repository in ``root``, and the server for it."""
        build = read_build(self._folder)
        engine = link_without_end(self._folder, root / "engine")
        bundle = ModelBundle("calibrate/calibrate", "0" * 64, engine, self._serving, build)
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


def link_without_end(engine: Path, folder: Path) -> Path:
    """Makes ``folder``, which is the engine but for its end tokens: no text of chance ends before its limit."""
    folder.mkdir()
    for path in engine.iterdir():
        (folder / path.name).symlink_to(path.resolve())
    facts = json.loads((engine / "engine.json").read_text())
    (folder / "engine.json").unlink()
    (folder / "engine.json").write_text(json.dumps({**facts, "eos_ids": []}))
    return folder


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nothing listens on.

    None that the kernel gives to clients (from 32,768): one of those could take it before Triton listens.
    """
    found: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            break
    return found


def end(server: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL to what is left of its group: a stub may outlive its server."""
    server.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(END_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()
