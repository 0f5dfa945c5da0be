"""The builder's Jobs, in the test's own process or in theirs, with what their environment holds in a cluster."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hotstart.engines.builder.cli import run_build, run_convert, run_inspect
from hotstart.engines.builder.log_tail import LogTail
from hotstart.engines.builder.settings import BuildSettings, make_build_settings
from hotstart.engines.key import key_inputs, make_key
from hotstart.engines.recipe import CTRANSLATE2_TOOLCHAIN, EngineLimits, EngineRecipe
from hotstart.engines.store import S3EngineStore
from hotstart.exchange.messages import ServingOptions
from hotstart.exchange.names import KEYS_FILE
from hotstart.exchange.signing import SigningKey, make_jwks, make_signing_key

from tests.support.object_store import ObjectStore
from tests.support.ports import free_port
from tests.support.scripted_operator import ScriptedOperator

SERVING = ServingOptions(max_input_tokens=96, max_new_tokens=32)
LIMITS = EngineLimits(batch_size=1, input_tokens=96, sequence_tokens=128)  # few at once: few steps to calibrate
RECIPE = EngineRecipe(CTRANSLATE2_TOOLCHAIN, dtype="float32", quantization="int8", limits=LIMITS)
END_SECONDS = 60


@dataclass
class RunningBuilder:
    """A ``build`` Job: a process of its own where ``process`` is one, else a task in the test's event loop."""

    running: asyncio.Task[int] | subprocess.Popen[str]
    termination: Path
    port: int
    pod_uid: str
    engine_key: str

    @property
    def process(self) -> subprocess.Popen[str]:
        assert isinstance(self.running, subprocess.Popen)
        return self.running

    async def wait(self) -> tuple[int, dict[str, Any]]:
        """Exit code and termination message."""
        if isinstance(self.running, subprocess.Popen):
            code = await asyncio.to_thread(self.running.wait, END_SECONDS)
        else:
            code = await asyncio.wait_for(self.running, END_SECONDS)
        text = self.termination.read_text() if self.termination.exists() else ""
        return code, json.loads(text) if text else {}


@dataclass
class BuilderJobs:
    """Starts Jobs on one checkpoint; whatever still runs is ended with the test."""

    store: ObjectStore
    uri: str
    folder: Path
    engine_bucket: str
    serving: ServingOptions = SERVING
    recipe: EngineRecipe = RECIPE
    environment: dict[str, str] = field(default_factory=dict)
    running: list[subprocess.Popen[str]] = field(default_factory=list)
    tails: list[LogTail] = field(default_factory=list)
    signing: SigningKey = field(default_factory=make_signing_key)

    def with_(self, **changes: Any) -> BuilderJobs:
        return replace(self, **changes)

    @property
    def bucket(self) -> str:
        """The bucket of the checkpoint's URI."""
        return self.uri.removeprefix("s3://").partition("/")[0]

    def upload(self, folder: Path) -> None:
        """Puts a checkpoint's files where the Jobs look for them."""
        self.store.upload_folder(folder, self.bucket, "model/")

    @property
    def engines(self) -> S3EngineStore:
        return S3EngineStore(self.store.place(self.engine_bucket))

    def inspect(self, *, process: bool = False) -> tuple[int, dict[str, Any]]:
        """Runs ``inspect`` to its end: exit code and termination message."""
        environment, termination = self._make_environment({"HOTSTART_RUNTIME": self.recipe.toolchain.runtime})
        code = (
            self._start("inspect", environment).wait(END_SECONDS) if process else run_inspect(environment, self._tail())
        )
        return code, json.loads(termination.read_text())

    def convert(self, inspected: dict[str, Any], **variables: str) -> tuple[int, dict[str, Any]]:
        """Runs ``convert`` to its end, asked by an operator: exit code, and the failure where there is one."""
        environment, termination = self._make_build_environment(inspected, variables)

        async def run() -> tuple[int, dict[str, Any]]:
            job = asyncio.create_task(run_convert(environment, self._tail()))
            return await self._wait_asked(RunningBuilder(job, termination, *self._addressed(environment)))

        with ThreadPoolExecutor(1) as apart:  # the test may run in an event loop of its own
            return apart.submit(asyncio.run, run()).result()

    async def convert_apart(self, inspected: dict[str, Any], **variables: str) -> tuple[int, dict[str, Any]]:
        """``convert`` in a process of its own."""
        return await self._wait_asked(self.serve_convert(inspected, **variables))

    async def _wait_asked(self, builder: RunningBuilder) -> tuple[int, dict[str, Any]]:
        asking = asyncio.create_task(self.operator(builder).run(until=lambda _: False))
        try:
            return await builder.wait()
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    def _addressed(self, environment: dict[str, str]) -> tuple[int, str, str]:
        return int(environment["HOTSTART_PORT"]), environment["POD_UID"], environment["HOTSTART_ENGINE_KEY"]

    def start_convert(self, inspected: dict[str, Any], **variables: str) -> subprocess.Popen[str]:
        """Starts ``convert`` in a process of its own."""
        return self._start("convert", self._make_build_environment(inspected, variables)[0])

    def serve_convert(self, inspected: dict[str, Any], **variables: str) -> RunningBuilder:
        """Starts ``convert`` in a process of its own, to be asked by an operator."""
        environment, termination = self._make_build_environment(inspected, variables)
        running = self._start("convert", environment)
        return RunningBuilder(running, termination, *self._addressed(environment))

    def build(
        self, inspected: dict[str, Any], *, process: bool = False, command: str = "build", **variables: str
    ) -> RunningBuilder:
        """Starts ``build``, or ``bundle``, for what ``inspect`` gave."""
        environment, termination = self._make_build_environment(inspected, variables)
        running: asyncio.Task[int] | subprocess.Popen[str]
        if process:
            running = self._start(command, environment)
        else:
            running = asyncio.create_task(run_build(environment, self._tail(), bundle=command == "bundle"))
        return RunningBuilder(running, termination, *self._addressed(environment))

    def build_settings(self, inspected: dict[str, Any]) -> BuildSettings:
        """What a ``build`` Job reads from its environment."""
        return make_build_settings(self._make_build_environment(inspected, {})[0])

    def _make_build_environment(
        self, inspected: dict[str, Any], variables: dict[str, str]
    ) -> tuple[dict[str, str], Path]:
        key = make_key(key_inputs(inspected["digest"], self.recipe))
        port, pod_uid = free_port(), str(uuid.uuid4())
        keys = self.folder / f"keys-{pod_uid}"
        keys.mkdir()
        (keys / KEYS_FILE).write_text(make_jwks((self.signing,)))
        more = {
            "HOTSTART_ENGINE_KEY": key,
            "HOTSTART_RECIPE": json.dumps(self.recipe.to_dict()),
            "HOTSTART_CHECKPOINT_DIGEST": inspected["digest"],
            "HOTSTART_TOKENIZER_DIGEST": inspected["tokenizerDigest"],
            "HOTSTART_KEYS_DIR": str(keys),
            "HOTSTART_HOST": "127.0.0.1",
            "HOTSTART_PORT": str(port),
            "POD_UID": pod_uid,
        }
        return self._make_environment(more | variables)

    def operator(self, builder: RunningBuilder, **options: Any) -> ScriptedOperator:
        """An operator that talks to ``builder``."""
        return ScriptedOperator(
            store=self.engines,
            key=self.signing,
            address=f"127.0.0.1:{builder.port}",
            pod_uid=builder.pod_uid,
            engine_key=builder.engine_key,
            **options,
        )

    def _make_environment(self, more: dict[str, str]) -> tuple[dict[str, str], Path]:
        scratch = self.folder / f"scratch-{uuid.uuid4().hex[:8]}"
        scratch.mkdir()
        termination = scratch.with_suffix(".termination")
        environment = {
            "HOTSTART_CHECKPOINT": json.dumps({"uri": self.uri, "revision": "", "endpoint": self.store.endpoint}),
            "HOTSTART_SERVING": self.serving.model_dump_json(),
            "HOTSTART_SCRATCH": str(scratch),
            "HOTSTART_TERMINATION_LOG": str(termination),
            "AWS_ACCESS_KEY_ID": self.store.reader_access_key,
            "AWS_SECRET_ACCESS_KEY": self.store.reader_secret_key,
            **more,
            **self.environment,
        }
        return environment, termination

    def _start(self, command: str, environment: dict[str, str]) -> subprocess.Popen[str]:
        ours = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        # The images have no torch but TensorRT-LLM's, which is played; ctranslate2 would spend 4 s on importing ours.
        program = "import sys; sys.modules['torch'] = None; from hotstart.engines.builder.cli import main; main()"
        process = subprocess.Popen([sys.executable, "-c", program, command], env=ours | environment, text=True)
        self.running.append(process)
        return process

    def _tail(self) -> LogTail:
        tail = LogTail()
        logging.getLogger("hotstart").addHandler(tail)
        self.tails.append(tail)
        return tail


@pytest.fixture
def builder_jobs(object_store: ObjectStore, tmp_path: Path) -> Iterator[BuilderJobs]:
    """Jobs on the checkpoint ``s3://<a bucket>/model/``, which the test uploads with ``object_store``."""
    bucket = object_store.make_bucket("checkpoints")
    jobs = BuilderJobs(object_store, f"s3://{bucket}/model/", tmp_path, object_store.make_bucket("engines"))
    yield jobs
    for tail in jobs.tails:
        logging.getLogger("hotstart").removeHandler(tail)
    for process in jobs.running:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
