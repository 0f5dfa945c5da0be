"""hotstart-agent: the console script of the pod agent. Configured by environment:

POD_UID; HOTSTART_TRITON (127.0.0.1:8000), HOTSTART_TRITON_METRICS (same host, port 8002), HOTSTART_MODELS (/models),
HOTSTART_RUN (/run/hotstart), HOTSTART_KEYS (the mounted JWKS), HOTSTART_PODINFO (/podinfo), HOTSTART_AGENT_PORT (9700),
HOTSTART_RUNTIME (ctranslate2; the image says it), HOTSTART_TENSOR_PARALLEL (1; the pod says it). NVIDIA's containers
set NVIDIA_TRITON_SERVER_VERSION; their Triton knows histograms of latencies, which that of nvidia-pytriton does not.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web
from hotstart.engines.pod_agent.agent import Agent
from hotstart.engines.pod_agent.disk import Disk
from hotstart.engines.pod_agent.loading import ServerFacts
from hotstart.engines.pod_agent.service import make_service
from hotstart.engines.pod_agent.triton_client import TritonClient, make_session
from hotstart.exchange.messages import PodAssignment
from hotstart.exchange.names import (
    CTRANSLATE2,
    KEYS_FILE,
    KEYS_MOUNT,
    PORT_AGENT,
    PORT_TRITON_METRICS,
    TENSORRT_LLM,
)
from pydantic import ValidationError

log = logging.getLogger("hotstart.agent")
RUNTIMES = (CTRANSLATE2, TENSORRT_LLM)


@dataclass(frozen=True)
class Settings:
    """The agent's environment, parsed."""

    uid: str
    triton: str
    metrics: str
    models: Path
    run: Path
    keys: Path
    podinfo: Path
    port: int
    address: str
    server: ServerFacts


def parse_settings(environment: Mapping[str, str]) -> Settings:
    """The settings.

    Raises:
        ValueError: a variable is missing or malformed; the message names it.
    """
    uid = environment.get("POD_UID", "")
    if not uid:
        raise ValueError("POD_UID is not set: it comes from the pod's downward API (metadata.uid)")
    triton = environment.get("HOTSTART_TRITON", "127.0.0.1:8000")
    host = triton.rpartition(":")[0]
    port = environment.get("HOTSTART_AGENT_PORT", str(PORT_AGENT))
    if not host or not port.isdigit():
        raise ValueError("HOTSTART_TRITON must be host:port, HOTSTART_AGENT_PORT a number")
    return Settings(
        uid=uid,
        triton=triton,
        metrics=environment.get("HOTSTART_TRITON_METRICS", f"{host}:{PORT_TRITON_METRICS}"),
        models=Path(environment.get("HOTSTART_MODELS", "/models")),
        run=Path(environment.get("HOTSTART_RUN", "/run/hotstart")),
        keys=Path(environment.get("HOTSTART_KEYS", f"{KEYS_MOUNT}/{KEYS_FILE}")),
        podinfo=Path(environment.get("HOTSTART_PODINFO", "/podinfo")),
        port=int(port),
        address=environment.get("HOTSTART_AGENT_ADDRESS", "0.0.0.0"),
        server=parse_server(environment),
    )


def parse_server(environment: Mapping[str, str]) -> ServerFacts:
    """What the pod's Triton is.

    Raises:
        ValueError: a variable is malformed; the message names it.
    """
    runtime = environment.get("HOTSTART_RUNTIME", CTRANSLATE2)
    ranks = environment.get("HOTSTART_TENSOR_PARALLEL", "1")
    if runtime not in RUNTIMES:
        raise ValueError(f"HOTSTART_RUNTIME is {runtime!r}: it must be one of {', '.join(RUNTIMES)}")
    if not ranks.isdigit() or int(ranks) < 1:
        raise ValueError(f"HOTSTART_TENSOR_PARALLEL is {ranks!r}: it must be a whole number of GPUs from 1")
    return ServerFacts(runtime, int(ranks), histograms=bool(environment.get("NVIDIA_TRITON_SERVER_VERSION")))


def read_annotated(podinfo: Path) -> PodAssignment | None:
    """The assignment that stands on the pod; None where there is none yet."""
    try:
        text = (podinfo / "assignment").read_text()
        return PodAssignment.model_validate_json(text) if text.strip() else None
    except FileNotFoundError:
        return None
    except ValidationError as error:
        log.warning("the pod's annotation is no assignment error=%s", error)
        return None


async def serve(settings: Settings) -> int:
    """Runs until SIGTERM or SIGINT; 1 if the agent's own task ended."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    disk = Disk(settings.models, settings.run)
    key = disk.prepare()
    async with make_session() as to_triton:
        triton = TritonClient(to_triton, http=settings.triton, metrics=settings.metrics, key=key)
        agent = Agent(uid=settings.uid, disk=disk, triton=triton, server=settings.server)
        running = asyncio.create_task(agent.run(read_annotated(settings.podinfo)))
        runner = web.AppRunner(make_service(agent, running, uid=settings.uid, keys=settings.keys), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, settings.address, settings.port).start()
        log.info("agent serves port=%d", settings.port)
        stop = asyncio.create_task(stopping.wait())
        await asyncio.wait({running, stop}, return_when=asyncio.FIRST_COMPLETED)
        crashed = running.done()
        if crashed:
            log.error("the agent's task ended", exc_info=running.exception())
        running.cancel()
        stop.cancel()
        await asyncio.gather(running, stop, return_exceptions=True)
        await runner.cleanup()
    return 1 if crashed else 0


def main() -> int:
    """The console script."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        settings = parse_settings(os.environ)
    except ValueError as error:
        log.error("bad environment: %s", error)
        return 2
    return asyncio.run(serve(settings))
