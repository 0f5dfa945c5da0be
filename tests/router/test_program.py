"""The program as Kubernetes runs it: its flags, its probes, its metrics, and its end on SIGTERM."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from hotstart.exchange.client import ExchangeClient
from hotstart.exchange.messages import RouterReport, RouterRequest
from hotstart.exchange.signing import make_jwks
from hotstart.router.settings import parse_settings
from prometheus_client.parser import text_string_to_metric_families

from tests.router.bench import KEY, MODEL, UID, Bench, make_route, until
from tests.support.fake_triton import FakeTriton
from tests.support.scripts import script
from tests.support.triton import free_port


@dataclass
class Running:
    process: asyncio.subprocess.Process
    http: aiohttp.ClientSession

    async def status(self, path: str) -> int:
        """0 while it does not listen."""
        try:
            async with self.http.get(path) as response:
                return response.status
        except aiohttp.ClientConnectionError:
            return 0

    async def until_status(self, path: str, status: int) -> None:
        async with asyncio.timeout(20):
            while await self.status(path) != status:  # noqa: ASYNC110 - another process has no event
                await asyncio.sleep(0.02)

    async def post(self, **body: object) -> int:
        async with self.http.post("/v1/completions", json={"model": MODEL, "prompt": "x", **body}) as response:
            text = await response.text()
            assert not body.get("stream") or text.endswith("data: [DONE]\n\n")
            return response.status


@pytest.fixture
async def running(tmp_path: Path, triton: FakeTriton) -> AsyncIterator[Running]:
    """The program with one pod, ready."""
    keys = tmp_path / "jwks.json"
    keys.write_text(make_jwks((KEY,)))
    port, exchange_port = free_port(), free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hotstart.router.cli", "--host", "127.0.0.1", "--port", str(port),
        "--exchange-port", str(exchange_port), "--keys-file", str(keys), "--drain-delay", "0.5",
        env={**os.environ, "POD_UID": UID},
    )  # fmt: skip
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http, aiohttp.ClientSession() as session:
        found = Running(process, http)
        try:
            await found.until_status("/healthz", 200)
            assert await found.status("/readyz") == 503
            client = ExchangeClient(session=session, key=KEY, epoch=1)
            request = RouterRequest(generation=1, routes=(make_route(triton),))
            await client.ask(f"127.0.0.1:{exchange_port}", UID, request, RouterReport)
            await found.until_status("/readyz", 200)
            yield found
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def test_sigterm_finishes_what_runs_and_accepts_a_little_longer(running: Running, triton: FakeTriton) -> None:
    assert await running.post() == 200
    long = [
        asyncio.create_task(running.post(prompt=script(steps=150, step_ms=10), stream=stream))
        for stream in (False, True)
    ]
    await until(lambda: len(triton.running) == 2)
    running.process.send_signal(signal.SIGTERM)
    await running.until_status("/readyz", 503)
    assert await running.post() == 200
    assert await asyncio.gather(*long) == [200, 200]
    assert await running.process.wait() == 0
    assert await running.status("/healthz") == 0


async def test_the_router_does_not_load_what_it_does_not_use() -> None:
    code = (
        "import sys, hotstart.router.cli; print([name for name in ('numpy', 'kopf', 'boto3') if name in sys.modules])"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    printed, _ = await process.communicate()
    assert (process.returncode, printed.decode()) == (0, "[]\n")


def test_the_messages_are_tritonclients_own() -> None:
    from hotstart.router.stubs import service_pb2 as light
    from tritonclient.grpc import InferenceServerClient, service_pb2

    assert light.ModelInferRequest is service_pb2.ModelInferRequest and InferenceServerClient is not None


async def test_two_signals_are_one_end(running: Running) -> None:
    running.process.send_signal(signal.SIGTERM)
    running.process.send_signal(signal.SIGINT)
    assert await running.process.wait() == 0


async def test_metrics_are_prometheus_text_with_an_edge_at_the_slo(bench: Bench, triton: FakeTriton) -> None:
    await bench.serve(triton, slo_ms=333)
    async with bench.post() as response:
        assert response.status == 200
    async with bench.http.get("/metrics") as response:
        assert response.headers["Content-Type"].startswith("text/plain")
        families = {family.name: family for family in text_string_to_metric_families(await response.text())}
    samples = {
        (sample.name, sample.labels.get("outcome"), sample.labels.get("le")): sample.value
        for family in families.values()
        for sample in family.samples
        if sample.labels.get("model") == MODEL
    }
    assert samples["hotstart_router_requests_total", "completed", None] == 1
    assert samples["hotstart_router_requests_total", "failed", None] == 0
    assert samples["hotstart_router_request_seconds_bucket", None, "0.333"] == 1
    assert samples["hotstart_router_request_seconds_count", None, None] == 1
    assert samples["hotstart_router_pod_answering", None, None] == 1
    assert samples["hotstart_router_in_flight", None, None] == 0
    assert samples["hotstart_router_queue_seconds_count", None, None] == 1
    assert "process_resident_memory_bytes" in families


def test_settings_come_from_flags_and_the_environment() -> None:
    environment = {"POD_UID": "u", "HOTSTART_ROUTER_DRAIN_DELAY": "7", "HOTSTART_ROUTER_PORT": "2"}
    settings = parse_settings(["--port", "1"], environment)
    assert (settings.port, settings.exchange_port, settings.drain_delay, settings.pod_uid) == (1, 9700, 7.0, "u")
    assert settings.state is None
    assert str(settings.keys_file) == "/etc/hotstart/exchange/jwks.json"


@pytest.mark.parametrize(
    ("flags", "environment", "word"),
    [
        ([], {}, "POD_UID"),
        (["--port", "x"], {"POD_UID": "u"}, "--port"),
        (["--drain-delay", "-1"], {"POD_UID": "u"}, "--drain-delay"),
        (["--max-body-bytes", "0"], {"POD_UID": "u"}, "--max-body-bytes"),
        (["--log-level", "loud"], {"POD_UID": "u"}, "--log-level"),
    ],
)
def test_wrong_settings_end_the_program_with_the_flags_name(
    capsys: pytest.CaptureFixture[str], flags: list[str], environment: dict[str, str], word: str
) -> None:
    with pytest.raises(SystemExit) as end:
        parse_settings(flags, environment)
    assert end.value.code == 2 and word in capsys.readouterr().err
