"""Where the cluster's programs come from: found on the machine at the right version, downloaded by pinned sha256, or
built from pinned Go modules; what is downloaded or built is cached.

The cache stands outside the work tree (`HOTSTART_CACHE`, by default `~/.cache/hotstart`), so that checkouts share it.
"""

from __future__ import annotations

import errno
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from hotstart.cluster import downloads, golang
from hotstart.cluster.errors import ClusterError
from hotstart.cluster.golang import Go
from hotstart.cluster.locks import exclusive
from hotstart.cluster.tools import Program, Tool

Say = Callable[[str], None]


def cache_dir(environ: Mapping[str, str]) -> Path:
    if named := environ.get("HOTSTART_CACHE"):
        return Path(named)
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hotstart"


def tool_dir(cache: Path, tool: Tool) -> Path:
    return cache / "bin" / f"{tool.name}-{tool.version}"


def sources_dir() -> Path:
    """The folder `cluster/go` of the checkout that this package is installed from."""
    return Path(__file__).resolve().parents[3] / "go"


def found(program: Program, environ: Mapping[str, str]) -> Path | None:
    """The program in KUBEBUILDER_ASSETS or PATH, if it says the version that the cluster is made for."""
    if not program.version_argv:
        return None
    for path in (environ.get("KUBEBUILDER_ASSETS"), environ.get("PATH")):
        place = shutil.which(program.name, path=path) if path else None
        if place is None:
            continue
        try:
            shown = subprocess.run((place, *program.version_argv), capture_output=True, text=True, check=False)
        except OSError:  # it cannot be run at all, as a script that does not name its shell
            continue
        if program.version_text in shown.stdout + shown.stderr:
            return Path(place).resolve()
    return None


def cached(tool: Tool, program: Program, cache: Path) -> Path | None:
    place = tool_dir(cache, tool) / program.name
    return place if place.is_file() else None


def places(tool: Tool, cache: Path, environ: Mapping[str, str]) -> dict[str, Path] | None:
    """Every program of the tool, or None if one has to be built."""
    known: dict[str, Path] = {}
    for program in tool.programs:
        place = cached(tool, program, cache) or found(program, environ)
        if place is None:
            return None
        known[program.name] = place
    return known


def missing(tools: Sequence[Tool], cache: Path, environ: Mapping[str, str]) -> tuple[Tool, ...]:
    return tuple(tool for tool in tools if places(tool, cache, environ) is None)


def to_build(missing: Sequence[Tool], environ: Mapping[str, str]) -> tuple[Tool, ...]:
    """Those of the missing tools that cannot be downloaded from here."""
    download = downloads.wanted(environ)
    return tuple(tool for tool in missing if not (download and downloads.reachable(tool)))


@contextmanager
def _making(tool: Tool, cache: Path, say: Say) -> Iterator[Path | None]:
    """An empty folder that becomes the tool's place in the cache; None where the tool has come there meanwhile."""
    target = tool_dir(cache, tool)
    lock = cache / "bin" / f".{tool.name}.lock"
    with exclusive(lock, lambda: say(f"waiting for another process that makes {tool.name} {tool.version}")):
        if all((target / program.name).is_file() for program in tool.programs):
            yield None
            return
        unfinished = target.with_name(f".{target.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            unfinished.mkdir(parents=True)
            yield unfinished
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            shutil.rmtree(unfinished, ignore_errors=True)
            raise ClusterError(
                f"The disk of {cache} is full: free some, or name another folder in HOTSTART_CACHE."
            ) from error
        shutil.rmtree(target, ignore_errors=True)
        unfinished.rename(target)


def download(tool: Tool, cache: Path, environ: Mapping[str, str], say: Say) -> bool:
    """Fetches the pinned release of one tool into the cache; False (and why is said) where it must be built."""
    releases = downloads.find_releases(tool, platform.machine())
    if not releases or not downloads.wanted(environ) or not downloads.reachable(tool):
        return False
    try:
        with _making(tool, cache, say) as folder:
            if folder is not None:
                downloads.download(releases, folder, say)
    except downloads.NotDownloaded as error:
        say(f"not downloaded: {error}")
        return False
    return True


def build(tool: Tool, go: Go, cache: Path, say: Say) -> None:
    """Build one tool into the cache; two checkouts that need it at once build it once."""
    with _making(tool, cache, say) as unfinished:
        if unfinished is not None:
            say(f"building {tool.name} {tool.version} from its pinned Go modules (once for this machine)")
            log = cache / "bin" / f"{tool.name}.log"
            golang.build(tool, go, sources_dir() / tool.name, log, unfinished, say)


def ensure(tools: Sequence[Tool], cache: Path, environ: Mapping[str, str], say: Say) -> dict[str, Path]:
    """The place of every program of the tools, downloading or building what is missing."""
    programs: dict[str, Path] = {}
    for tool in tools:
        known = places(tool, cache, environ)
        if known is None and download(tool, cache, environ, say):
            known = {program.name: tool_dir(cache, tool) / program.name for program in tool.programs}
        if known is None:
            go = golang.find(environ)
            problem = golang.problem((tool,), go)
            if go is None or problem:
                raise ClusterError(problem or "No Go is installed.")
            build(tool, go, cache, say)
            known = {program.name: tool_dir(cache, tool) / program.name for program in tool.programs}
        programs.update(known)
    return programs
