"""A pod on this machine for tests: a real Triton, the real agent as a process, a store with faults to order."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from aiohttp import web
from hotstart.engines.triton.repository import ModelBundle, make_repository
from hotstart.engines.triton.server import KEY_FILE, ServerPlan
from hotstart.engines.triton.trtllm_config import read_build
from hotstart.exchange.client import ExchangeClient
from hotstart.exchange.messages import EngineFile, PodAssignment, PodReport, PodRequest, PodState, ServingOptions
from hotstart.exchange.signing import SigningKey

from tests.support.triton import TritonServer, start_triton

ENGINE_KEY = "ab" * 32
MODEL = "team/tiny"
POD_UID = "3f2b6a52-0000-4000-8000-000000000001"
WAIT_SECONDS = 60.0


def make_serving(**changes: object) -> ServingOptions:
    values = {"max_input_tokens": 64, "max_new_tokens": 48, "stop": "none", "inter_threads": 2, **changes}
    return ServingOptions.model_validate(values)


async def until(condition: Callable[[], Awaitable[object]], what: str, seconds: float = WAIT_SECONDS) -> None:
    """Waits for a condition; the time is only a backstop."""
    try:
        async with asyncio.timeout(seconds):
            while not await condition():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"never came: {what}") from None


def make_assignment(**changes: object) -> PodAssignment:
    values = {
        "generation": 1,
        "model": MODEL,
        "engine_key": ENGINE_KEY,
        "runtime": "ctranslate2",
        "manifest_sha256": "cd" * 32,
        "serving": make_serving(),
        **changes,
    }
    return PodAssignment.model_validate(values)


def write_repository(root: Path, engine: Path, serving: ServingOptions) -> Path:
    """A model repository as the agent writes it."""
    runtime = json.loads((engine / "engine.json").read_text())["runtime"]
    build = read_build(engine) if runtime == "tensorrt_llm" else None
    for path, text in make_repository(ModelBundle(MODEL, ENGINE_KEY, engine, serving, build)).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


@dataclass
class Store:
    """Files over HTTP with ranges, as presigned URLs look to the agent, and the faults that a test orders."""

    folder: Path
    address: str = ""
    token: str = "1"
    failing: int = 0  # so many requests get 503
    gets: list[str] = field(default_factory=list)

    def files(self) -> tuple[EngineFile, ...]:
        """What the manifest says, with URLs: call it before the files are tampered with."""
        return tuple(
            EngineFile(
                path=path.name,
                size=path.stat().st_size,
                sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
                url=f"http://{self.address}/{path.name}?token={self.token}",
            )
            for path in sorted(self.folder.iterdir())
        )

    async def handle(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        self.gets.append(name)
        if request.query["token"] != self.token:
            return web.Response(status=403)
        if self.failing > 0:
            self.failing -= 1
            return web.Response(status=503)
        return web.FileResponse(self.folder / name)


@dataclass
class Pod:
    """One pod: folders, ports, and the processes that a test starts and kills in it."""

    root: Path
    session: aiohttp.ClientSession
    key: SigningKey
    port: int
    plan: ServerPlan
    agent: subprocess.Popen[bytes] | None = None
    triton: TritonServer | None = None
    epoch: int = 1
    backends: Path | None = None
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def log(self) -> str:
        return (self.root / "agent.log").read_text(errors="replace")

    def start_agent(self) -> None:
        environment = {
            **os.environ,
            "POD_UID": POD_UID,
            "HOTSTART_TRITON": f"127.0.0.1:{self.plan.http_port}",
            "HOTSTART_TRITON_METRICS": f"127.0.0.1:{self.plan.metrics_port}",
            "HOTSTART_MODELS": str(self.root / "models"),
            "HOTSTART_RUN": str(self.root / "run"),
            "HOTSTART_KEYS": str(self.root / "jwks.json"),
            "HOTSTART_PODINFO": str(self.root / "podinfo"),
            "HOTSTART_AGENT_PORT": str(self.port),
            "HOTSTART_AGENT_ADDRESS": "127.0.0.1",
            **self.environment,
        }
        with (self.root / "agent.log").open("ab") as log:
            self.agent = subprocess.Popen(
                [sys.executable, "-c", "from hotstart.engines.pod_agent.cli import main; raise SystemExit(main())"],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.epoch += 1  # a restarted agent takes any stamp; the same operator goes on counting
        self.client = ExchangeClient(session=self.session, key=self.key, epoch=self.epoch)

    async def start_triton(self) -> None:
        async def has_key() -> bool:
            return (self.root / "run" / KEY_FILE).exists()

        await until(has_key, "the pod's key")
        self.plan = ServerPlan(**{**vars(self.plan), "key": (self.root / "run" / KEY_FILE).read_text()})
        self.triton = await asyncio.to_thread(
            start_triton,
            self.plan.repository,
            like=self.plan,
            log=self.root / "triton.log",
            backends=self.backends,
        )

    def end_agent(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.agent is not None:
            self.agent.send_signal(number)
            self.agent.wait(20)
            self.agent = None

    async def ask(self, request: PodRequest) -> PodReport:
        return await self.client.ask(f"127.0.0.1:{self.port}", POD_UID, request, PodReport)

    async def listens(self) -> bool:
        try:
            async with self.session.get(f"http://127.0.0.1:{self.port}/healthz") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    async def ready(self) -> bool:
        try:
            async with self.session.get(f"http://127.0.0.1:{self.port}/readyz") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    async def reach(self, request: PodRequest, *states: PodState) -> PodReport:
        """Asks as the operator does until the pod is in one of ``states``."""
        reports: list[PodReport] = []

        async def there() -> bool:
            reports.append(await self.ask(request))
            return reports[-1].state in states

        await until(self.listens, f"the agent's port; {self.log}")
        try:
            await until(there, f"one of {states}")
        except AssertionError as error:
            raise AssertionError(f"{error}; last {reports[-1]}; {self.log}") from None
        return reports[-1]

    async def complete(self, prompt: str = "def add(a, b):\n") -> str:
        url = f"http://127.0.0.1:{self.plan.http_port}/v2/models/completion/generate"
        async with self.session.post(url, json={"prompt": prompt, "options": '{"max_tokens": 6}'}) as response:
            answer = await response.json()
            assert "error" not in answer, answer
            return str(answer["text"])
