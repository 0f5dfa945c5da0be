"""The command itself, in processes of its own as people run it: text, JSON, exit codes, sentences."""

import asyncio
import contextlib
import json
import os
import pty
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hotstart.loadtest.cli import main
from hotstart.loadtest.command import decide_exit_code
from hotstart.loadtest.plan import LoadPlan
from hotstart.loadtest.result import LoadResult

from .conftest import MODEL, FakeServer, error_response

DEADLINE = 60


async def start_cli(
    *arguments: str, stdout: int = asyncio.subprocess.PIPE, stderr: int = asyncio.subprocess.PIPE
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "hotstart.loadtest.cli",
        *arguments,
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "xterm"},
        start_new_session=True,
    )


async def finish(process: asyncio.subprocess.Process) -> tuple[bytes, bytes]:
    """What it printed until its end; where that does not come in time, it is killed."""
    try:
        return await asyncio.wait_for(process.communicate(), DEADLINE)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def cli(*arguments: str) -> tuple[int, str, str]:
    process = await start_cli(*arguments)
    out, err = await finish(process)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def run_arguments(server: FakeServer, *more: str) -> list[str]:
    return ["run", "--url", server.url, "--model", MODEL, "--drift-limit", "10s", *more]


def rate_arguments(server: FakeServer, *more: str) -> list[str]:
    return run_arguments(server, "--rate", "50", "--duration", "200ms", *more)


async def test_the_report_for_people(server: FakeServer) -> None:
    code, out, err = await cli(*rate_arguments(server, "--slo", "30s"))
    assert (code, err) == (0, "")
    assert "10 requests, 10 ok, 0 failed" in out
    assert "rate offered 50.0/s" in out
    assert "100.00% within the SLO" in out
    for word in ("P50", "P90", "P95", "P99", "latency (from the intended time)", "send drift", "30 completion tokens"):
        assert word in out
    assert "void" not in out


async def test_a_terminal_sees_a_bar_that_reaches_its_end_and_the_report_stays_clean(server: FakeServer) -> None:
    ours, theirs = pty.openpty()
    try:
        process = await start_cli(*rate_arguments(server, "--json"), stderr=theirs)
        os.close(theirs)
        seen, report = await asyncio.wait_for(asyncio.gather(read_terminal(ours), process.communicate()), DEADLINE)
    finally:
        os.close(ours)
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    assert "sent" in seen and " 0/10 " in seen and " 10/10 " in seen and "0 in flight, 0 failed" in seen
    assert json.loads(report[0])["requests"] == 10


async def read_terminal(descriptor: int) -> str:
    """All that is drawn until nobody holds the other end."""
    drawn = b""
    with contextlib.suppress(OSError):  # EIO: as Linux says that it was closed
        while piece := await asyncio.to_thread(os.read, descriptor, 65536):
            drawn += piece
    return drawn.decode()


async def test_the_report_for_programs_is_json_alone(server: FakeServer, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    code, out, _ = await cli(*rate_arguments(server, "--json", "--stream", "--output", str(file)))
    figures = json.loads(out)
    assert json.loads(file.read_text()) == figures
    assert code == 1  # the server answers no stream
    assert figures["failures"] == {"cut_short": 10}
    assert {"p50_ms", "p90_ms", "p95_ms", "p99_ms", "drift_p99_ms", "rate", "duration_s"} <= figures.keys()
    assert {"machine_cores", "started_at"} <= figures.keys()
    assert (figures["model"], figures["rate"], figures["void"]) == (MODEL, 50.0, False)


@pytest.mark.parametrize("more", [[], ["--json"]], ids=["text", "json"])
async def test_the_file_has_the_report_when_nobody_reads_the_output(
    server: FakeServer, tmp_path: Path, more: list[str]
) -> None:
    file = tmp_path / "report.json"
    nobody, theirs = os.pipe()
    os.close(nobody)
    process = await start_cli(*rate_arguments(server, "--output", str(file), *more), stdout=theirs)
    os.close(theirs)
    _, err = await finish(process)
    assert (process.returncode, err) == (0, b"")
    assert json.loads(file.read_text())["ok"] == 10


async def test_words_that_the_output_cannot_hold_cost_no_report(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return error_response(500, "caf\u00e9 \ud83d")  # half of a surrogate pair, as JSON can hold it

    server.behave = fail
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    file = tmp_path / "report.json"
    code, out, err = await cli(*rate_arguments(server, "--output", str(file)))
    assert (code, err) == (1, "")
    assert "10 failed with http_500, such as: caf? ?" in out
    assert json.loads(file.read_text(encoding="utf-8"))["failure_details"] == {"http_500": "caf\u00e9 ?"}


async def test_several_processes_send_one_schedule(server: FakeServer) -> None:
    code, out, _ = await cli(*rate_arguments(server, "--processes", "3", "--json"))
    figures = json.loads(out)
    assert (code, figures["processes"], figures["requests"], figures["ok"]) == (0, 3, 10, 10)
    assert len(server.bodies) == 10


async def test_a_trace_is_replayed(server: FakeServer, trace_file: Path) -> None:
    arguments = ("--trace", str(trace_file), "--speed", "10", "--max-tokens", "64", "--json")
    code, out, _ = await cli(*run_arguments(server, *arguments))
    figures = json.loads(out)
    assert (code, figures["ok"], figures["schedule_s"]) == (0, 4, 0.225)
    asked = sorted((body["max_tokens"], len(body["prompt"])) for body in server.bodies)
    assert asked == [(4, 512 * 3), (8, 120 * 3), (16, 64 * 3), (64, 40 * 3)]


async def test_failures_decide_the_exit_code(server: FakeServer) -> None:
    async def fail_twice(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if len(server.bodies) in (2, 5):
            return error_response(503, "no replica of team-a/tiny is ready: [building]")
        return web.json_response({"choices": [{"text": "x"}]})

    server.behave = fail_twice
    code, out, _ = await cli(*rate_arguments(server))
    assert code == 1
    assert "2 failed with http_503, such as: no replica of team-a/tiny is ready: [building]" in out
    server.bodies.clear()
    assert (await cli(*rate_arguments(server, "--max-failures", "2")))[0] == 0


async def test_a_void_run_says_so_and_exits_with_3(server: FakeServer) -> None:
    code, out, _ = await cli(
        "run", "--url", server.url, "--model", MODEL, "--rate", "20", "--duration", "200ms", "--drift-limit", "1us"
    )
    assert code == 3
    assert "This run is void" in out


async def test_cancels_are_counted_apart_and_are_no_failure(server: FakeServer) -> None:
    async def never(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.Event().wait()
        return web.Response()

    server.behave = never
    code, out, _ = await cli(*rate_arguments(server, "--cancel-fraction", "1", "--cancel-after", "50ms", "--json"))
    figures = json.loads(out)
    assert (code, figures["cancelled"], figures["failed"], figures["p50_ms"]) == (0, 10, 0, None)


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_ctrl_c_prints_the_report_of_what_was_done(server: FakeServer, processes: str) -> None:
    process = await start_cli(
        *run_arguments(server, "--rate", "20", "--duration", "1h", "--processes", processes, "--json")
    )
    try:
        await asyncio.wait_for(server.received.wait(), DEADLINE)
        process.send_signal(signal.SIGINT)
        out, err = await asyncio.wait_for(process.communicate(), DEADLINE)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    figures = json.loads(out)
    assert (process.returncode, err) == (130, b"")
    assert figures["interrupted"] is True
    assert 1 <= figures["requests"] < 1000
    assert figures["planned"] == 72_000


async def test_ctrl_c_ends_a_calibration_with_what_has_held() -> None:
    process = await start_cli("calibrate", "--step", "100ms", "--drift-limit", "10s", "--json")
    assert process.stderr is not None
    try:
        for _ in range(2):  # two of three runs decide about the first rate
            assert b"held" in await asyncio.wait_for(process.stderr.readline(), DEADLINE)
        os.killpg(process.pid, signal.SIGINT)
        out, err = await asyncio.wait_for(process.communicate(), DEADLINE)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    figures = json.loads(out)
    assert process.returncode == 130
    assert (figures["interrupted"], figures["max_rate"] >= 100) == (True, True)
    assert b"Traceback" not in err
    assert b"hotstart-loadtest" not in err


async def test_the_senders_end_when_the_command_is_killed(server: FakeServer) -> None:
    process = await start_cli(*run_arguments(server, "--rate", "20", "--duration", "1h"))
    await asyncio.wait_for(server.received.wait(), DEADLINE)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children
    process.kill()
    await process.wait()

    async def all_gone() -> None:
        while any(Path(f"/proc/{child}").exists() for child in children):  # noqa: ASYNC110 - no event tells it
            await asyncio.sleep(0.05)

    await asyncio.wait_for(all_gone(), DEADLINE)


async def test_a_wrong_target_costs_one_sentence(server: FakeServer, free_port: int) -> None:
    schedule = ("--rate", "1", "--duration", "1s")
    code, out, err = await cli("run", "--url", server.url, "--model", "team-a/other", *schedule)
    assert (code, out) == (2, "")
    assert err == (f"hotstart-loadtest: --model team-a/other: {server.url} does not serve it; it serves {MODEL}\n")
    code, _, err = await cli("run", "--url", f"http://127.0.0.1:{free_port}", "--model", MODEL, *schedule)
    assert code == 2
    assert f"--url http://127.0.0.1:{free_port}: cannot connect (Connect" in err
    assert err.count("\n") == 1
    code, _, err = await cli("run", "--url", "127.0.0.1:80", "--model", MODEL, *schedule)
    assert code == 2
    assert "--url '127.0.0.1:80' is no address" in err
    assert server.bodies == []


async def test_a_refused_key_and_a_server_that_is_no_router_are_told(server: FakeServer) -> None:
    server.models_status = 401
    code, _, err = await cli(*rate_arguments(server))
    assert (code, "--header" in err) == (2, True)
    server.models_status = 404
    code, _, err = await cli(*rate_arguments(server))
    assert (code, "--no-check" in err) == (2, True)
    assert (await cli(*rate_arguments(server, "--no-check")))[0] == 0


async def test_a_redirect_is_told_with_the_address_that_it_leads_to(server: FakeServer) -> None:
    server.models_status = 308
    server.models_headers = {"Location": f"{server.url}/base/v1/models"}
    code, _, err = await cli(*rate_arguments(server))
    assert code == 2
    assert f"--url {server.url}: GET /v1/models is redirected to {server.url}/base/v1/models" in err
    assert server.bodies == []


@pytest.mark.parametrize(("option", "value"), [("--step", "1ms"), ("--step", "2m"), ("--drift-limit", "0s")])
def test_wrong_usage_of_calibrate_is_told_by_its_own_flag(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["calibrate", option, value])
    assert f"argument {option}: '{value}' is no" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "one of the arguments --rate --trace is required"),
        (["--rate", "5"], "--rate needs --duration"),
        (["--rate", "5", "--duration", "30"], "'30' is no duration"),
        (["--rate", "0", "--duration", "3s"], "--rate must be a positive"),
        (["--rate", "5", "--duration", "3s", "--speed", "2"], "--speed belongs to --trace"),
        (["--rate", "5", "--duration", "3s", "--trace", "x"], "not allowed with"),
        (["--trace", "/nowhere.csv"], "--trace /nowhere.csv: cannot be read"),
        (["--trace", "x", "--arrivals", "poisson"], "--arrivals belongs to --rate"),
        (["--rate", "5", "--duration", "3s", "--processes", "0"], "--processes"),
        (["--rate", "5", "--duration", "3s", "--cancel-fraction", "0.5"], "--cancel-after"),
        (["--rate", "5", "--duration", "3s", "--header", "nonsense"], "--header 'nonsense'"),
        (["--rate", "5", "--duration", "3s", "--output", "/nowhere/x"], "--output /nowhere/x: cannot be written"),
    ],
)
def test_wrong_usage_is_told_by_the_flag(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["run", "--url", "http://127.0.0.1:9", "--model", MODEL, *arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 2
    assert told in capsys.readouterr().err


def test_the_order_of_exit_codes() -> None:
    from datetime import UTC, datetime

    from hotstart.loadtest.sample import Outcome, Sample

    def result(drift: float, outcome: Outcome, *, interrupted: bool = False) -> LoadResult:
        samples = (Sample(0, drift, 0.1, outcome, "timeout"),)
        return LoadResult(LoadPlan("http://h", "m", ()), samples, datetime.now(UTC), 1, interrupted=interrupted)

    assert decide_exit_code(result(0, Outcome.OK), max_failures=0) == 0
    assert decide_exit_code(result(0, Outcome.FAILED), max_failures=0) == 1
    assert decide_exit_code(result(0, Outcome.FAILED), max_failures=1) == 0
    assert decide_exit_code(result(1, Outcome.FAILED), max_failures=0) == 3
    assert decide_exit_code(result(1, Outcome.FAILED, interrupted=True), max_failures=0) == 130
