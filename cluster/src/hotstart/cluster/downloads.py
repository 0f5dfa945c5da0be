"""Official release binaries, pinned by sha256, for machines that reach the internet: faster than building.

A file of another digest is refused and the tool is built instead; nothing unverified is ever run. Digests are those
that the projects publish (kops and kubespray list the Kubernetes and etcd ones, Helm's release notes its own). CoreDNS
and pause have no pin and are built.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import socket
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from hotstart.cluster.tools import ETCD_VERSION, HELM_VERSION, KUBERNETES_VERSION, Tool

TIMEOUT_SECONDS = 30.0
REACH_SECONDS = 3.0
BLOCK_BYTES = 1024 * 1024
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

Say = Callable[[str], None]


class NotDownloaded(Exception):
    """The file could not be had, or is not the pinned one; the text says which and why."""


@dataclass(frozen=True)
class Release:
    """One published file: ``sha256`` in hex; ``member`` is the program's place in an archive, '' for a bare binary."""

    program: str
    url: str
    sha256: str
    member: str = ""


def _kubernetes(architecture: str, digests: Mapping[str, str]) -> tuple[Release, ...]:
    base = f"https://dl.k8s.io/release/{KUBERNETES_VERSION}/bin/linux/{architecture}"
    return tuple(Release(name, f"{base}/{name}", digest) for name, digest in digests.items())


def _etcd(architecture: str, digest: str) -> tuple[Release, ...]:
    name = f"etcd-{ETCD_VERSION}-linux-{architecture}"
    url = f"https://github.com/etcd-io/etcd/releases/download/{ETCD_VERSION}/{name}.tar.gz"
    return (Release("etcd", url, digest, f"{name}/etcd"),)


def _helm(architecture: str, digest: str) -> tuple[Release, ...]:
    url = f"https://get.helm.sh/helm-{HELM_VERSION}-linux-{architecture}.tar.gz"
    return (Release("helm", url, digest, f"linux-{architecture}/helm"),)


#: (tool, version, architecture) -> what to fetch; a version without an entry is built.
PINS: Mapping[tuple[str, str, str], tuple[Release, ...]] = {
    ("kubernetes", "v1.35.4", "amd64"): _kubernetes(
        "amd64",
        {
            "kube-apiserver": "d5fff07e41f6826963254685667cfb3ec354dd676aa697e75c1e973e86d28fc7",
            "kube-controller-manager": "be0dc23daaf568c51017ea867707bd38ab36a78a83982bc12af9184e8e370c2c",
            "kube-proxy": "db3001aa69c853e5a1a5d51c15eff112e6342a0fea9c99d7e272b6e47268c0a3",
            "kube-scheduler": "c796c9e54fc56745b9f50d2aa464d97d10007adc7cf0ba36a9cbf450a6f11770",
            "kubectl": "b529430df69a688fd61b64ad2299edb5fd71cb58be2a4779dba624c7d3510efd",
            "kubelet": "983a6ba5a49823dcdd745c674e5e2416377dd27d6ad1b42d2befa0fb961a19f6",
        },
    ),
    ("kubernetes", "v1.35.4", "arm64"): _kubernetes(
        "arm64",
        {
            "kube-apiserver": "ef055372df04d541c84ab8cb6dabfa67c3f5f35e6cbe7642673f94e1ca560cf3",
            "kube-controller-manager": "0ba5bc092a1fe68987f2b4ae072146962ed31b73819c1552153894eff67968c0",
            "kube-proxy": "769bf09cc106c03beb7f10bf96b29ef26a9316e2a43f45b8265c7fb9b8c1d61a",
            "kube-scheduler": "ad75d09987d28f69d12959b880074ae3d2fedcf7491f5d41d6f23456d822333c",
            "kubectl": "6a5a4cc4e396d7626a7a693a3044b51c75520f81db30fe6816c2554e53be336f",
            "kubelet": "d710eef03bb4ad164bb77af9be5b11b44f874e2fc08153c7d383420d685f73e8",
        },
    ),
    ("etcd", "v3.6.14", "amd64"): _etcd("amd64", "ffe840ff9295808e88cce2794a18a5ac87f12a5203c8314d0bf6aa119b41bac5"),
    ("etcd", "v3.6.14", "arm64"): _etcd("arm64", "fa1b80565ee6fc2df1ae6f57a508b221f3ecc7d591c317c581cd8281b0842b3e"),
    ("helm", "v3.19.5", "amd64"): _helm("amd64", "a0a5e8c592ed3f376ac110715eff214730c7422f9a44d96cf98117d2b8b0e6c0"),
    ("helm", "v3.19.5", "arm64"): _helm("arm64", "ce02147ffee6d993bf8ae97a44a22e9e1daf0b69d2d5b69a0c8cf6706445ccf5"),
}


def find_releases(tool: Tool, machine: str) -> tuple[Release, ...]:
    """The pinned files of the tool for ``machine`` (as ``uname -m`` says it); () where it must be built. Pure."""
    return PINS.get((tool.name, tool.version, ARCHITECTURES.get(machine, machine)), ())


def reachable(tool: Tool) -> bool:
    """Whether the hosts of the tool's pinned files answer within ``REACH_SECONDS`` (a proxy counts as an answer)."""
    releases = find_releases(tool, platform.machine())
    if not releases or urllib.request.getproxies().get("https"):
        return bool(releases)
    for host in {urlsplit(release.url).hostname for release in releases}:
        try:
            socket.create_connection((host, 443), REACH_SECONDS).close()
        except OSError:
            return False
    return True


def download(releases: tuple[Release, ...], folder: Path, say: Say) -> None:
    """Fetches every program into ``folder``, executable.

    Raises:
        NotDownloaded: a file cannot be had, is not the pinned one, or lacks the program; ``folder`` may hold others.
        OSError: ``folder`` cannot be written to.
    """
    for release in releases:
        say(f"downloading {release.url.rsplit('/', 1)[-1]}")
        with tempfile.TemporaryFile(dir=folder) as body:
            _fetch(release, body)
            body.seek(0)
            target = folder / release.program
            with target.open("wb") as out:
                shutil.copyfileobj(_open_member(release, body), out, BLOCK_BYTES)
            target.chmod(0o755)


def _blocks(release: Release) -> Iterator[bytes]:
    try:
        with urllib.request.urlopen(release.url, timeout=TIMEOUT_SECONDS) as answer:
            while block := answer.read(BLOCK_BYTES):
                yield block
    except (OSError, HTTPException) as error:
        raise NotDownloaded(f"{release.url}: {error}") from error


def _fetch(release: Release, body: IO[bytes]) -> None:
    digest = hashlib.sha256()
    for block in _blocks(release):
        digest.update(block)
        body.write(block)
    if digest.hexdigest() != release.sha256:
        raise NotDownloaded(f"{release.url} has the sha256 {digest.hexdigest()[:12]}, not {release.sha256[:12]}")


def _open_member(release: Release, body: IO[bytes]) -> IO[bytes]:
    if not release.member:
        return body
    try:
        archive = tarfile.open(fileobj=body, mode="r:gz")  # noqa: SIM115  # closed with body
        member = archive.extractfile(release.member)
    except (tarfile.TarError, KeyError, OSError) as error:
        raise NotDownloaded(f"{release.url} has no {release.member}: {error}") from error
    if member is None:
        raise NotDownloaded(f"{release.url}: {release.member} is no file")
    return member


def wanted(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether to download at all: ``HOTSTART_DOWNLOAD=never`` says no."""
    return environ.get("HOTSTART_DOWNLOAD", "") != "never"
