"""Release binaries against a server on this machine: taken by digest alone, and built where they cannot be had."""

from __future__ import annotations

import hashlib
import io
import platform
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hotstart.cluster import binaries, downloads, tools
from hotstart.cluster.errors import ClusterError

PROGRAM = b"#!/bin/sh\necho etcd Version: 3.6.14\n"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder)) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()
        thread.join()


def pack(path: Path, member: str) -> str:
    """Writes an archive of the program; returns its sha256."""
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo(member)
        info.size = len(PROGRAM)
        archive.addfile(info, io.BytesIO(PROGRAM))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def etcd(server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> downloads.Release:
    """The only pin is an archive on the local server."""
    folder, base = server
    digest = pack(folder / "etcd.tar.gz", "etcd-v3/etcd")
    release = downloads.Release("etcd", f"{base}/etcd.tar.gz", digest, "etcd-v3/etcd")
    serve(release, monkeypatch)
    return release


def serve(release: downloads.Release, monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = downloads.ARCHITECTURES.get(platform.machine(), platform.machine())
    monkeypatch.setattr(downloads, "PINS", {("etcd", tools.ETCD_VERSION, architecture): (release,)})
    monkeypatch.setattr(downloads, "reachable", lambda tool: tool is tools.ETCD)


def test_a_pinned_release_comes_into_the_cache(etcd: downloads.Release, tmp_path: Path) -> None:
    said: list[str] = []

    found = binaries.ensure((tools.ETCD,), tmp_path / "cache", {}, said.append)

    assert found["etcd"].read_bytes() == PROGRAM
    assert found["etcd"].stat().st_mode & 0o111 == 0o111
    assert said == ["downloading etcd.tar.gz"]
    assert sorted(path.name for path in found["etcd"].parent.iterdir()) == ["etcd"]


def test_the_second_time_nothing_is_downloaded(etcd: downloads.Release, tmp_path: Path) -> None:
    binaries.ensure((tools.ETCD,), tmp_path / "cache", {}, lambda text: None)
    said: list[str] = []

    binaries.ensure((tools.ETCD,), tmp_path / "cache", {}, said.append)

    assert said == []


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"sha256": "0" * 64}, "has the sha256"),
        ({"member": "etcd-v3/absent"}, "has no etcd-v3/absent"),
        ({"url": "http://127.0.0.1:9/etcd.tar.gz"}, "refused"),
    ],
)
def test_what_is_not_the_pinned_file_is_built_instead(
    etcd: downloads.Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], why: str
) -> None:
    serve(replace(etcd, **change), monkeypatch)
    said: list[str] = []

    taken = binaries.download(tools.ETCD, tmp_path / "cache", {}, said.append)

    assert not taken
    assert why in said[-1]
    assert binaries.cached(tools.ETCD, tools.ETCD.programs[0], tmp_path / "cache") is None


def test_a_full_disk_is_told_and_builds_nothing(
    etcd: downloads.Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = partial(Path("/dev/full").open, "r+b", buffering=0)
    monkeypatch.setattr(downloads.tempfile, "TemporaryFile", lambda **_: full())
    cache = tmp_path / "cache"

    with pytest.raises(ClusterError, match="is full: free some, or name another folder in HOTSTART_CACHE"):
        binaries.ensure((tools.ETCD,), cache, {}, lambda text: None)

    assert not [path for path in (cache / "bin").iterdir() if path.is_dir()]


def test_what_can_be_downloaded_needs_no_go(etcd: downloads.Release, tmp_path: Path) -> None:
    assert binaries.to_build((tools.ETCD, tools.HELM), {}) == (tools.HELM,)


def test_downloads_can_be_turned_off(etcd: downloads.Release, tmp_path: Path) -> None:
    environ = {"HOTSTART_DOWNLOAD": "never"}

    assert not binaries.download(tools.ETCD, tmp_path, environ, lambda text: None)
    assert binaries.to_build((tools.ETCD,), environ) == (tools.ETCD,)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("tool", [tools.KUBERNETES, tools.ETCD, tools.HELM], ids=lambda tool: tool.name)
def test_the_pins_are_of_the_versions_that_the_cluster_uses(tool: tools.Tool, machine: str) -> None:
    releases = downloads.find_releases(tool, machine)

    assert {release.program for release in releases} == {program.name for program in tool.programs}
    assert all(tool.version in release.url and len(release.sha256) == 64 for release in releases)


def test_an_unknown_machine_builds() -> None:
    assert downloads.find_releases(tools.ETCD, "riscv64") == ()
