"""Our own HTTP client against servers that speak it in every way that the standard allows, and in some it does not."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hotstart.loadtest.drive import run_load
from hotstart.loadtest.plan import LoadPlan, make_constant_plan
from hotstart.loadtest.result import LoadResult

from tests.support.certificates import make_tls

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

BODY = b'{"choices":[{"text":"x"}]}'
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


class RawServer:
    """Answers each request with the bytes of `answer`, in `pieces`; counts the connections."""

    def __init__(self, answer: bytes, *, then_close: bool = False, size: int = 65536) -> None:
        self.answer = answer
        self.then_close = then_close
        self.size = size
        self.connections = 0
        self.requests: list[bytes] = []
        self.talks: list[asyncio.Task[object]] = []

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self.talks.append(task)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                for start in range(0, len(self.answer), self.size):
                    writer.write(self.answer[start : start + self.size])
                    await writer.drain()
                    await asyncio.sleep(0)
                if self.then_close:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()


@asynccontextmanager
async def serving(raw: RawServer, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    server = await asyncio.start_server(raw.talk, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1]
        await asyncio.gather(*raw.talks)  # they end with the client's connections


def plan_for(port: int, scheme: str = "http", **more: object) -> LoadPlan:
    plan = make_constant_plan(f"{scheme}://localhost:{port}/base", "m", rate=50, duration=0.1)
    return replace(plan, drift_limit_s=60, **more)  # type: ignore[arg-type]


async def load(raw: RawServer, **more: object) -> LoadResult:
    async with serving(raw) as port:
        return await run_load(plan_for(port, **more))


async def test_the_request_is_plain_http_with_its_headers() -> None:
    raw = RawServer(GOOD)
    result = await load(raw, headers={"Authorization": "Bearer k", "User-Agent": "mine"})
    assert result.summary.ok == 5
    head = raw.requests[0].split(b"\r\n\r\n")[0].decode().split("\r\n")
    assert head[0] == "POST /base/v1/completions HTTP/1.1"
    assert "Authorization: Bearer k" in head
    assert "User-Agent: mine" in head
    assert any(line.startswith("Host: localhost:") for line in head)


async def test_a_header_replaces_the_one_of_its_name_in_any_case() -> None:
    raw = RawServer(GOOD)
    assert (await load(raw, headers={"host": "models.example", "CONTENT-TYPE": "application/x"})).summary.ok == 5
    lines = raw.requests[0].split(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    assert {"host: models.example", "CONTENT-TYPE: application/x"} <= set(lines)
    names = [line.partition(":")[0].lower() for line in lines]
    assert sorted(names) == ["accept", "content-length", "content-type", "host", "user-agent"]


async def test_connections_are_used_again_one_request_at_a_time() -> None:
    raw = RawServer(GOOD)
    async with serving(raw) as port:
        plan = replace(plan_for(port), arrivals=tuple(replace(a, offset=a.offset * 5) for a in plan_for(port).arrivals))
        assert (await run_load(plan)).summary.ok == 5
    assert len(raw.requests) == 5
    assert raw.connections < 5


@pytest.mark.parametrize("size", [1, 7, 65536])
@pytest.mark.parametrize(
    "answer",
    [
        GOOD,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n"
        + BODY[:5]
        + b"\r\n15\r\n"
        + BODY[5:]
        + b"\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + GOOD,
    ],
    ids=["length", "chunked", "continue"],
)
async def test_answers_come_in_any_pieces(answer: bytes, size: int) -> None:
    assert (await load(RawServer(answer, size=size))).summary.ok == 5


@pytest.mark.parametrize(
    "answer",
    [
        GOOD.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"),
        b"HTTP/1.1 200 OK\r\n\r\n" + BODY,
        b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY),
    ],
    ids=["close", "until the end", "old"],
)
async def test_a_server_that_closes_after_each_answer_gets_a_new_connection_each(answer: bytes) -> None:
    raw = RawServer(answer, then_close=True)
    assert (await load(raw)).summary.ok == 5
    assert raw.connections == 5


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "bad_response"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", "cut_short"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{", "cut_short"),
        (b"HTTP/1.1 200", "connection_lost"),
        (b"", "connection_lost"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "http_204"),
        (b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", "http_302"),
    ],
)
async def test_what_is_no_answer_is_a_failure(answer: bytes, reason: str) -> None:
    result = await load(RawServer(answer, then_close=True))
    assert result.summary.failures == {reason: 5}


async def test_bytes_that_nobody_asked_for_end_the_connection_and_not_the_run() -> None:
    raw = RawServer(GOOD + b"HTTP/1.1 500 Surprise\r\nContent-Length: 0\r\n\r\n")
    result = await load(raw)
    assert result.summary.ok == 5
    assert raw.connections == 5


async def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    async with serving(RawServer(GOOD), make_tls(tmp_path)) as port:
        result = await run_load(plan_for(port, "https"))
    assert result.summary.failures == {"connect": 5}
    assert "certificate" in result.summary.failure_details["connect"].lower()


async def test_tls_with_a_trusted_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tls = make_tls(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    async with serving(RawServer(GOOD), tls) as port:
        result = await run_load(plan_for(port, "https"))
    assert result.summary.ok == 5


async def test_a_name_that_nobody_knows_is_a_failed_connection() -> None:
    plan = make_constant_plan("http://no-such-host.invalid", "m", rate=50, duration=0.1)
    result = await run_load(replace(plan, drift_limit_s=60))
    assert result.summary.failures == {"connect": 5}
