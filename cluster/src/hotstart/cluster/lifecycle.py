"""`up` and `down`: from nothing to a cluster that serves, and back to nothing.

`up` looks first and changes nothing where something lacks; then it prepares files, starts the keeper, follows the
init's steps, and opens the ports of the machine. Killed at any point, it takes the half-made cluster with it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from hotstart.cluster import binaries, cgroups, forward, golang, preflight, prepare, processes, settings, tools, waiting
from hotstart.cluster.cluster import S3, Cluster, read, write
from hotstart.cluster.errors import ClusterError
from hotstart.cluster.keeper import API_ONLY, KEEP
from hotstart.cluster.layout import Layout
from hotstart.cluster.plan import API_PORT, CONTROL, S3_PORT, api_endpoint, s3_endpoint

Say = Callable[[str], None]
# containerd needs these beside the programs of the cluster; the environment of a person may lack the system's folders.
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


FORWARDER_SECONDS = 15.0


@dataclass(frozen=True)
class Wanted:
    """What `up` is asked for; a port of 0 is any free one."""

    api_only: bool = False
    api_port: int = 0
    s3_port: int = 0


@contextmanager
def _locked(layout: Layout, patience: float) -> Iterator[None]:
    """One `up` or `down` at a time in a folder."""
    layout.root.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    with layout.lock.open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ClusterError(
                        f"Another `up` or `down` works in {layout.root}: wait for it, or end it, then try again."
                    ) from None
                time.sleep(0.1)
        yield


def _look_at_cache(wanted: Wanted, environ: Mapping[str, str]) -> preflight.CacheFacts:
    cache, needed = binaries.cache_dir(environ), tools.wanted(wanted.api_only)
    missing = binaries.missing(needed, cache, environ)
    to_build = binaries.to_build(missing, environ)
    go_problem = golang.problem(to_build, golang.find(environ)) if to_build else None
    return preflight.gather_cache(cache, bool(missing), bool(to_build), go_problem)


def _look(layout: Layout, wanted: Wanted, environ: Mapping[str, str]) -> preflight.Facts:
    """Look at the machine; raise what it lacks."""
    cache = _look_at_cache(wanted, environ)
    facts = preflight.gather_facts(layout.root, cache, (wanted.api_port, wanted.s3_port))
    if found := preflight.problems(facts, wanted.api_only):
        raise ClusterError("\n".join(found))
    return facts


def fetch(wanted: Wanted | None = None, say: Say = lambda text: None) -> dict[str, Path]:
    """The place of every program of a cluster, downloading or building what is missing, without starting one."""
    wanted = wanted or Wanted()
    cache = _look_at_cache(wanted, os.environ)
    if found := preflight.cache_problems(cache):
        raise ClusterError("\n".join(found))
    return binaries.ensure(tools.wanted(wanted.api_only), cache.folder, os.environ, say)


def _mend(layout: Layout) -> None:
    """End what still runs of an earlier cluster in this folder, and remove all that it made."""
    for path in (layout.keeper_file, layout.node(0).init_file):
        known = processes.read(path)
        if known is None:
            continue
        asked = signal.SIGTERM if path == layout.keeper_file else signal.SIGKILL
        processes.end(known, asked)
        if not processes.wait_ended(known, 15):
            processes.end(known, signal.SIGKILL)
            processes.wait_ended(known, 5)
    if os.geteuid() == 0:
        cgroups.remove(layout.cgroup)
    for place in layout.owned():
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        elif place != layout.lock:
            place.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Keeper:
    process: subprocess.Popen[bytes]
    lifeline: int
    progress: int


def _start_keeper(layout: Layout, api_only: bool) -> _Keeper:
    lifeline_read, lifeline = os.pipe()
    progress, progress_write = os.pipe()
    path = os.pathsep.join(filter(None, (os.environ.get("PATH"), SYSTEM_PATH)))
    sources = str(Path(__file__).resolve().parents[2])
    python_path = os.pathsep.join(filter(None, (sources, os.environ.get("PYTHONPATH"))))
    with (layout.logs / "keeper.log").open("wb") as log:
        process = subprocess.Popen(
            (
                *(sys.executable, "-m", "hotstart.cluster.keeper", layout.root),
                *(str(lifeline_read), str(progress_write), API_ONLY if api_only else "whole"),
            ),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(lifeline_read, progress_write),
            start_new_session=True,
            cwd="/",
            env={**os.environ, "PATH": path, "PYTHONPATH": python_path},
        )
    os.close(lifeline_read)
    os.close(progress_write)
    return _Keeper(process, lifeline, progress)


def _follow(layout: Layout, keeper: _Keeper, say: Say) -> None:
    """Print the init's steps until it says that all is ready."""
    with os.fdopen(keeper.progress) as lines:
        for line in lines:
            told = json.loads(line)
            if "error" in told:
                raise ClusterError(told["error"])
            if told.get("ready"):
                return
            say(told["step"])
    raise ClusterError("\n".join(("The cluster ended before it stood.", *_log_ends(layout))))


def _log_ends(layout: Layout) -> Iterator[str]:
    """The last lines of the keeper and of the init, as far as they came to write any."""
    for log in (layout.logs / "keeper.log", layout.logs / "init.log"):
        if log.is_file() and (lines := log.read_text(errors="replace").splitlines()[-5:]):
            yield "\n".join((f"The end of {log}:", *lines))


@dataclass(frozen=True)
class _Init:
    """What forwarding needs to know before the cluster is written down."""

    init_pid: int


def _open(layout: Layout, wanted: Wanted, keys: settings.S3Keys) -> Cluster:
    """Open the machine's ports and write down the cluster."""
    init = processes.read(layout.node(0).init_file)
    if init is None:
        raise ClusterError(f"The cluster's init ended: see {layout.logs / 'init.log'}.")
    api_port = forward.expose(_Init(init.pid), CONTROL.address, API_PORT, wanted.api_port)
    endpoint = f"https://127.0.0.1:{api_port}"
    prepare.write_kubeconfig(layout, layout.kubeconfig, "admin", endpoint)
    store = None
    if not wanted.api_only:
        s3_port = forward.expose(_Init(init.pid), CONTROL.address, S3_PORT, wanted.s3_port)
        store = S3(
            endpoint=f"http://127.0.0.1:{s3_port}",
            endpoint_in_cluster=s3_endpoint(),
            access_key=keys.admin_access_key,
            secret_key=keys.admin_secret_key,
            reader_access_key=keys.reader_access_key,
            reader_secret_key=keys.reader_secret_key,
        )
    cluster = Cluster(
        dir=str(layout.root),
        init_pid=init.pid,
        api_only=wanted.api_only,
        kubernetes_version=tools.KUBERNETES_VERSION,
        node_name=CONTROL.name,
        node_address=CONTROL.address,
        api_port=api_port,
        api_endpoint=endpoint,
        api_endpoint_in_cluster=api_endpoint(),
        kubeconfig=str(layout.kubeconfig),
        kubeconfig_in_cluster=str(layout.kubeconfig_inside),
        bin=str(layout.bin),
        s3=store,
    )
    write(cluster)
    return cluster


def _already(layout: Layout, wanted: Wanted) -> Cluster | None:
    known = read(layout)
    if known is not None and known.api_only and not wanted.api_only:
        raise ClusterError(
            f"In {layout.root} an API server alone runs (--api-only): run `hotstart-cluster down` first, "
            "or name another folder with --dir."
        )
    return known


def _ports(cluster: Cluster) -> Iterator[tuple[str, int, int]]:
    """Every port that `up` opens: host and port in the cluster, port on the machine."""
    yield CONTROL.address, API_PORT, cluster.api_port
    if cluster.s3:
        port = urlsplit(cluster.s3.endpoint).port
        assert port is not None
        yield CONTROL.address, S3_PORT, port


def _open_lost(cluster: Cluster) -> None:
    """Open the ports that went with a forwarder that ended; the one in its place knows none."""

    def check() -> None:
        if not Path(f"/proc/{cluster.init_pid}").exists():
            raise ClusterError("The cluster's init ended: run `hotstart-cluster up` again.")

    waiting.until("the forwarder", lambda: forward.answers(cluster), check, FORWARDER_SECONDS)
    for host, port, local_port in _ports(cluster):
        forward.reuse(cluster, host, port, local_port)


def up(directory: Path, wanted: Wanted | None = None, say: Say = lambda text: None) -> Cluster:
    """The cluster of the folder, started if it does not run; of one that runs, lost ports are opened again."""
    layout, wanted = Layout(directory.resolve()), wanted or Wanted()
    if known := _already(layout, wanted):
        with _locked(layout, patience=FORWARDER_SECONDS):
            _open_lost(known)
        return known
    facts = _look(layout, wanted, os.environ)
    programs = binaries.ensure(tools.wanted(wanted.api_only), facts.cache.folder, os.environ, say)
    with _locked(layout, patience=0):
        if known := _already(layout, wanted):
            return known
        _mend(layout)
        keys = prepare.write_all(layout, wanted.api_only, programs, facts.weed)
        keeper = _start_keeper(layout, wanted.api_only)
        try:
            _follow(layout, keeper, say)
            cluster = _open(layout, wanted, keys)
            os.write(keeper.lifeline, KEEP)
        except BaseException:
            layout.cluster_file.unlink(missing_ok=True)
            os.close(keeper.lifeline)
            keeper.process.wait()
            raise
        os.close(keeper.lifeline)
        return cluster


def down(directory: Path) -> bool:
    """End the cluster of the folder and remove all that it made; False if there was nothing."""
    layout = Layout(directory.resolve())
    if not any(place.exists() for place in layout.owned()) and not cgroups.present(layout.cgroup):
        return False
    with _locked(layout, patience=5):
        _mend(layout)
    layout.lock.unlink(missing_ok=True)
    return True
