"""What an exchange with 200 agents each second costs the operator: processor time a second (goal: 0.15 of a core).

Whole turns of the operator's exchange are measured: 200 serving pods as the watches show them, a signed message to
each, reports read, routes made. The agents run in a process of their own, each on a loopback address of its own; only
the asking process counts.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import resource
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import aiohttp
import record
from aiohttp import web
from hotstart.exchange.client import ExchangeClient
from hotstart.exchange.messages import PodReport, PodRequest, PodState
from hotstart.exchange.names import PORT_AGENT
from hotstart.exchange.server import KeySet, add_exchange, make_app
from hotstart.exchange.signing import SigningKey, make_jwks, make_signing_key
from hotstart.operator.adapters.agents import ExchangeAgents

from tests.operator.world import World

AGENTS = 200
SECONDS = 5
RUNS = 5


def address_of(number: int) -> str:
    """A loopback address for one agent: the operator asks every agent at the same port."""
    return f"127.9.0.{number + 1}"


async def serve(keys_file: Path, pipe: Connection) -> None:
    """An agent for each UID that the pipe names, until something more comes."""
    keys = KeySet(keys_file)
    for number, uid in enumerate(pipe.recv()):

        async def answer(request: PodRequest, uid: str = uid) -> PodReport:
            key = "" if request.assignment is None else request.assignment.engine_key
            return PodReport(
                pod_uid=uid,
                state=PodState.READY,
                generation=1,
                engine_key=key,
                phases={"fetch": 1.0, "load": 0.5},
            )

        app = make_app()
        add_exchange(app, keys=keys, audience=uid, request_type=PodRequest, answer=answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, address_of(number), PORT_AGENT).start()
    pipe.send("ready")
    await asyncio.get_running_loop().run_in_executor(None, pipe.poll, None)


def run_agents(keys_file: Path, pipe: Connection) -> None:
    """The agents' process."""
    asyncio.run(serve(keys_file, pipe))


def cpu_seconds() -> float:
    """Processor time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def make_world() -> World:
    """A model with ``AGENTS`` replicas, all ready, at the agents' addresses."""
    world = World()
    world.apply(replicas=AGENTS)
    await world.run_until(world.is_ready, limit=300)
    for number, pod in enumerate(world.pods()):
        world.cluster.change("Pod", pod["metadata"]["name"], {"status": {"podIP": address_of(number)}})
    return world


async def measure(pipe: Connection, key: SigningKey) -> list[float]:
    """Processor seconds a second, for each run."""
    world = await make_world()
    pipe.send([pod["metadata"]["uid"] for pod in world.pods()])
    await asyncio.to_thread(pipe.recv)
    assert world.operator is not None
    exchange, shares = world.operator.exchange, []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        exchange.agents = ExchangeAgents(ExchangeClient(session=session, key=key, epoch=1))
        exchange.routing.routers = ()
        exchange.memory.reports.clear()
        await exchange.turn()
        heard = exchange.memory.reports
        assert len(heard) == AGENTS, f"{len(heard)} of {AGENTS} agents were heard"
        for _ in range(RUNS):
            began = cpu_seconds()
            for _ in range(SECONDS):
                world.clock.seconds += 1
                await exchange.turn()
            shares.append((cpu_seconds() - began) / SECONDS)
            now = world.clock.now()
            assert all(report.at == now for report in heard.values()), "some agents were not heard in the last turn"
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
        shares = asyncio.run(measure(ours, key))
        ours.send("done")
        agents.join()
    figures = {"agents": AGENTS, "runs": RUNS, "cores": record.median(shares)}
    record.write("exchange", figures, {"cores": record.at_most(0.15)})


if __name__ == "__main__":
    main()
