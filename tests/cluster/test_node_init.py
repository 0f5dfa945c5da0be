"""Process 1 of the namespaces keeps its components, whatever ends when."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

WaitUntil = Callable[[str, Callable[[], bool]], None]
COMPONENTS = ("first", "second", "third")
# Reaps every child, so it has a process of its own. Each component ends at once, and when started again stays until
# the marker is gone.
KEEPER = """
import sys
from pathlib import Path
from hotstart.cluster import node_init

node_init.RESTART_SECONDS = 0.05
folder = Path(sys.argv[1])
running = node_init.Running(folder)
for name in sys.argv[2:]:
    script = f"echo started >>{name}; [ $(wc -l <{name}) -lt 2 ] || while [ -e stay ]; do sleep 0.05; done"
    running.start(node_init.Component(name, ("/bin/sh", "-c", f"cd {folder}; {script}")))
running.keep()
"""


def starts(place: Path) -> int:
    return len(place.read_text().splitlines()) if place.exists() else 0


def test_components_that_end_together_all_come_back(tmp_path: Path, wait_until: WaitUntil) -> None:
    (tmp_path / "stay").touch()
    keeper = subprocess.Popen((sys.executable, "-c", KEEPER, str(tmp_path), *COMPONENTS), stdout=subprocess.DEVNULL)
    try:
        wait_until("their second start", lambda: all(starts(tmp_path / name) >= 2 for name in COMPONENTS))
    finally:
        keeper.kill()
        keeper.wait()
        (tmp_path / "stay").unlink()
