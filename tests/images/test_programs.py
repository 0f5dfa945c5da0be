"""The programs of the images, which are the first process of their containers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = sorted((ROOT / "images").glob("*/bin/*"))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_sigterm_ends_it_while_it_is_still_importing(program: Path, tmp_path: Path) -> None:
    package = tmp_path / "hotstart" / "__init__.py"
    package.parent.mkdir()
    package.write_text("import time\nprint('importing', flush=True)\ntime.sleep(600)\n")

    with subprocess.Popen(
        ("unshare", "--pid", "--fork", "--kill-child", sys.executable, program),
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    ) as unshare:
        try:
            assert unshare.stdout is not None
            assert unshare.stdout.readline() == "importing\n"
            [first] = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children").read_text().split()
            os.kill(int(first), signal.SIGTERM)
            assert unshare.wait(20) == 143
        finally:
            unshare.kill()
