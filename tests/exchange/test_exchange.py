"""Operator and agent over real HTTP: question, report, and every way in which an agent fails to answer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest
from aiohttp.test_utils import TestServer
from hotstart.exchange.client import ExchangeClient, ExchangeFailed
from hotstart.exchange.messages import PodReport, PodRequest, PodState, RouterReport
from hotstart.exchange.server import KeySet, add_exchange, make_app
from hotstart.exchange.signing import make_jwks, make_signing_key


class Agent:
    """A pod agent that keeps what it is told."""

    def __init__(self, keys_file: Path) -> None:
        self.heard: list[PodRequest] = []
        app = make_app()
        add_exchange(app, keys=KeySet(keys_file), audience="pod-1", request_type=PodRequest, answer=self.answer)
        self.server = TestServer(app)

    async def answer(self, request: PodRequest) -> PodReport:
        self.heard.append(request)
        return PodReport(pod_uid="pod-1", state=PodState.EMPTY)

    @property
    def address(self) -> str:
        return f"{self.server.host}:{self.server.port}"


@pytest.fixture
def key():
    return make_signing_key()


@pytest.fixture
async def agent(tmp_path, key):
    keys_file = tmp_path / "jwks.json"
    keys_file.write_text(make_jwks((key,)))
    agent = Agent(keys_file)
    async with agent.server:
        yield agent


@pytest.fixture
async def session():
    async with aiohttp.ClientSession() as session:
        yield session


async def test_the_operator_asks_and_the_agent_answers(agent, key, session) -> None:
    client = ExchangeClient(session=session, key=key, epoch=1)
    for drain in (False, True):
        report = await client.ask(agent.address, "pod-1", PodRequest(drain=drain), PodReport)
        assert report.state is PodState.EMPTY
    assert [request.drain for request in agent.heard] == [False, True]


async def test_an_old_leader_is_refused_after_the_new_one_spoke(agent, key, session) -> None:
    old, new = (ExchangeClient(session=session, key=key, epoch=epoch) for epoch in (1, 2))
    await old.ask(agent.address, "pod-1", PodRequest(), PodReport)
    await new.ask(agent.address, "pod-1", PodRequest(), PodReport)
    with pytest.raises(ExchangeFailed, match=r"401.*not newer"):
        await old.ask(agent.address, "pod-1", PodRequest(drain=True), PodReport)
    assert [request.drain for request in agent.heard] == [False, False]


async def test_a_message_for_another_pod_is_refused(agent, key, session) -> None:
    client = ExchangeClient(session=session, key=key, epoch=1)
    with pytest.raises(ExchangeFailed, match="401"):
        await client.ask(agent.address, "pod-2", PodRequest(), PodReport)
    assert agent.heard == []


async def test_rotated_keys_need_no_restart(agent, session, tmp_path) -> None:
    newer = make_signing_key()
    client = ExchangeClient(session=session, key=newer, epoch=1)
    with pytest.raises(ExchangeFailed, match="unknown key"):
        await client.ask(agent.address, "pod-1", PodRequest(), PodReport)
    (tmp_path / "new.json").write_text(make_jwks((newer,)))
    (tmp_path / "new.json").rename(tmp_path / "jwks.json")
    await client.ask(agent.address, "pod-1", PodRequest(), PodReport)


async def test_half_written_keys_leave_the_last_good_ones(agent, key, session, tmp_path) -> None:
    client = ExchangeClient(session=session, key=key, epoch=1)
    await client.ask(agent.address, "pod-1", PodRequest(), PodReport)
    (tmp_path / "jwks.json").write_text('{"keys": [')
    await client.ask(agent.address, "pod-1", PodRequest(), PodReport)


async def test_a_report_of_another_kind_is_a_failure(agent, key, session) -> None:
    client = ExchangeClient(session=session, key=key, epoch=1)
    with pytest.raises(ExchangeFailed, match="ValidationError"):
        await client.ask(agent.address, "pod-1", PodRequest(), RouterReport)


async def test_silence_is_a_failure_and_not_a_wait(key, session) -> None:
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = ExchangeClient(session=session, key=key, epoch=1, timeout=0.1)
    with pytest.raises(ExchangeFailed, match="TimeoutError"):
        await client.ask(f"127.0.0.1:{port}", "pod-1", PodRequest(), PodReport)
    server.close()
    with pytest.raises(ExchangeFailed, match="ClientConnectorError"):
        await client.ask(f"127.0.0.1:{port}", "pod-1", PodRequest(), PodReport)
