"""The Go that builds the cluster's programs: the first one that is new enough, and its builds with their progress told.

`python -m hotstart.cluster.golang` ends with 0 where there is one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hotstart.cluster.errors import ClusterError
from hotstart.cluster.tools import GO_MINIMUM, Tool, build_argv

PROGRESS_SECONDS = 15.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class Go:
    """A Go command and its major and minor version."""

    command: str
    version: tuple[int, int]

    @property
    def new_enough(self) -> bool:
        return self.version >= GO_MINIMUM


def _version(command: str) -> tuple[int, int] | None:
    """The version that the command says, None if it says none."""
    try:
        shown = subprocess.run((command, "env", "GOVERSION"), capture_output=True, text=True, check=False, cwd="/")
    except OSError:  # it cannot be run at all
        return None
    match = re.match(r"go(\d+)\.(\d+)", shown.stdout)
    return (int(match[1]), int(match[2])) if match else None


def _installed(environ: Mapping[str, str]) -> Iterator[Go]:
    """In PATH, then beside this Python, where pip puts it."""
    for place in (
        shutil.which("go", path=environ.get("PATH")),
        shutil.which("go", path=str(Path(sys.executable).parent)),
    ):
        if place is not None and (version := _version(place)):
            yield Go(place, version)


def find(environ: Mapping[str, str]) -> Go | None:
    """The first Go that is new enough; where there is none, the first one; None without any."""
    found = tuple(_installed(environ))
    return next((go for go in found if go.new_enough), found[0] if found else None)


def problem(tools: Sequence[Tool], go: Go | None) -> str | None:
    """Why the tools cannot be built, in one sentence; None if they can."""
    if not tools or (go is not None and go.new_enough):
        return None
    names = ", ".join(f"{tool.name} {tool.version}" for tool in tools)
    have = "no Go is installed" if go is None else f"Go {go.version[0]}.{go.version[1]} is too old"
    needed = f"{GO_MINIMUM[0]}.{GO_MINIMUM[1]}"
    sentence = f"{names} must be built, and {have}: install Go {needed} or newer (https://go.dev/dl)"
    # One that says no version is never taken from a folder.
    if all(program.version_argv for tool in tools for program in tool.programs):
        sentence += ", or set KUBEBUILDER_ASSETS to a folder that has these programs"
    return f"{sentence}."


def progress(log: str) -> str:
    """How far a build is, from what `go build -v` has written: modules while it downloads, then packages."""
    lines = log.splitlines()
    compiled = [line for line in lines if " " not in line]
    if compiled:
        return f"{len(compiled)} packages compiled, the last {compiled[-1]}"
    return f"{len(lines)} modules, {lines[-1].removeprefix('go: ')}" if lines else "nothing compiled yet"


def _run(command: Sequence[str], folder: Path, log: Path, tell: Callable[[float], None]) -> int:
    """Run to the end, telling the elapsed seconds now and then; the program dies with this one."""
    began = time.monotonic()
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", "GOWORK": "off"}
    with log.open("w") as out:
        # The next one to build would clear the folder under a Go that lives on.
        child = subprocess.Popen(
            ("setpriv", "--pdeathsig", "KILL", *command),
            cwd=folder,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            while True:
                try:
                    return child.wait(PROGRESS_SECONDS)
                except subprocess.TimeoutExpired:
                    tell(time.monotonic() - began)
        finally:
            child.kill()
            child.wait()


def build(tool: Tool, go: Go, sources: Path, log: Path, output: Path, say: Say) -> None:
    """Build the tool's programs into the folder `output`, under their own names."""

    def tell(seconds: float) -> None:
        say(f"building {tool.name}: {seconds:.0f} s, {progress(log.read_text(errors='replace'))}")

    if _run(build_argv(tool, go.command, str(output)), sources, log, tell):
        said = [line for line in log.read_text(errors="replace").splitlines() if " " in line]
        tail = "\n".join(said[-5:])
        raise ClusterError(f"Building {tool.name} {tool.version} failed; the whole output is in {log}:\n{tail}")
    for program in tool.programs:
        (output / program.built_as).rename(output / program.name)


if __name__ == "__main__":
    known = find(os.environ)
    sys.exit(known is None or not known.new_enough)
