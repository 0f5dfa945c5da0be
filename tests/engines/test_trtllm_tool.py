"""Tools of the container as processes: what becomes of the workers that they start."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hotstart.engines.errors import EngineError, Reason
from hotstart.engines.runtimes.tensorrt_llm import tool
from hotstart.engines.runtimes.tensorrt_llm.build_command import Command
from hotstart.engines.runtimes.tensorrt_llm.tool import RUNNING, run_tool

#: A worker that holds the tool's output and would leave a file behind when it ends by itself.
WORKER = "(sleep 30; touch ended) &"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "GRACE_SECONDS", 0.2)


def run(folder: Path, script: str) -> list[str]:
    """The lines of a shell script that is run as a tool."""
    lines: list[str] = []
    run_tool(Command(("sh", "-c", script)), folder, lines.append)
    return lines


def test_a_tool_that_dies_before_its_workers_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"sh was killed \(exit 137\)") as failure:
        run(tmp_path, f"{WORKER} sleep 0.2; kill -9 $$")
    assert failure.value.reason is Reason.OUT_OF_MEMORY
    assert not (tmp_path / "ended").exists()
    assert not RUNNING


def test_a_tool_that_ends_well_takes_its_workers_with_it(tmp_path: Path) -> None:
    lines = run(tmp_path, f"{WORKER} echo $! > worker.pid; echo done")
    assert "done" in lines
    assert not (tmp_path / "ended").exists()
    pid = int((tmp_path / "worker.pid").read_text())
    while is_running(pid):
        time.sleep(0.01)


def test_workers_may_say_their_last_after_the_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "GRACE_SECONDS", 30.0)
    assert run(tmp_path, "(sleep 0.3; echo last) & echo first") == ["first", "last"]


def test_bars_are_heard_and_do_not_drive_words_out_of_the_tail(tmp_path: Path) -> None:
    bars = "".join(f"printf '%3d%%|#|\\r' {step}; " for step in range(100))
    heard: list[str] = []
    with pytest.raises(EngineError, match=r'saying "what went wrong"'):
        run_tool(Command(("sh", "-c", f"echo what went wrong; {bars} exit 3")), tmp_path, heard.append)
    assert heard[0] == "what went wrong"
    assert heard[-1].strip() == "99%|#|"


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie that init has not collected yet."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
