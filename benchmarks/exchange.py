"""What an exchange with 200 agents each second costs the operator: processor time a second (goal: 0.15 of a core).

The agents run in a process of their own, one HTTP server a port; only the asking process is measured.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import resource
import socket
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import aiohttp
import record
from aiohttp import web
from hotstart.exchange.client import ExchangeClient
from hotstart.exchange.messages import PodAssignment, PodReport, PodRequest, PodState, ServingOptions
from hotstart.exchange.server import KeySet, add_exchange, make_app
from hotstart.exchange.signing import SigningKey, make_jwks, make_signing_key

AGENTS = 200
SECONDS = 5
RUNS = 5


async def serve(keys_file: Path, pipe: Connection) -> None:
    """All agents, until the pipe closes."""
    ports: list[int] = []
    keys = KeySet(keys_file)

    async def answer(_: PodRequest) -> PodReport:
        return PodReport(pod_uid="pod", state=PodState.READY, generation=1, phases={"fetch": 1.0, "load": 0.5})

    for index in range(AGENTS):
        app = make_app()
        add_exchange(app, keys=keys, audience=f"pod-{index}", request_type=PodRequest, answer=answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.SockSite(runner, sock := make_socket())
        await site.start()
        ports.append(sock.getsockname()[1])
    pipe.send(ports)
    await asyncio.get_running_loop().run_in_executor(None, pipe.poll, None)


def make_socket() -> socket.socket:
    """A listening socket on a free loopback port."""
    found = socket.socket()
    found.bind(("127.0.0.1", 0))
    return found


def run_agents(keys_file: Path, pipe: Connection) -> None:
    """The agents' process."""
    asyncio.run(serve(keys_file, pipe))


def cpu_seconds() -> float:
    """Processor time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def ask_all(client: ExchangeClient, ports: list[int]) -> None:
    """One second's exchange."""
    serving = ServingOptions(max_input_tokens=96, max_new_tokens=16)
    assignment = PodAssignment(
        generation=1, model="n/m", engine_key="0" * 64, runtime="ctranslate2", manifest_sha256="0" * 64, serving=serving
    )
    request = PodRequest(assignment=assignment)
    asks = (client.ask(f"127.0.0.1:{port}", f"pod-{i}", request, PodReport) for i, port in enumerate(ports))
    await asyncio.gather(*asks)


async def measure(ports: list[int], key: SigningKey) -> list[float]:
    """Processor seconds a second, for each run."""
    shares = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        client = ExchangeClient(session=session, key=key, epoch=1)
        await ask_all(client, ports)
        for _ in range(RUNS):
            began = cpu_seconds()
            for _ in range(SECONDS):
                await ask_all(client, ports)
            shares.append((cpu_seconds() - began) / SECONDS)
    return shares


def main() -> None:
    """Measures and records."""
    key = make_signing_key()
    with tempfile.TemporaryDirectory() as folder:
        keys_file = Path(folder) / "jwks.json"
        keys_file.write_text(make_jwks((key,)))
        ours, theirs = multiprocessing.Pipe()
        agents = multiprocessing.get_context("spawn").Process(target=run_agents, args=(keys_file, theirs), daemon=True)
        agents.start()
        shares = asyncio.run(measure(ours.recv(), key))
        ours.send("done")
        agents.join()
    record.write("exchange", {"agents": AGENTS, "runs": RUNS, "cores": record.median(shares), "goal_cores": 0.15})


if __name__ == "__main__":
    main()
