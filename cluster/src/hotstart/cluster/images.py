"""Bring images into the cluster's containerd without a registry: from buildah's store, or from an archive file.

From the store they go through one uncompressed OCI folder in the cluster's folder, so that layers that several images
share are written once; what containerd already has under the same image id is left out altogether.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from hotstart.cluster import argv
from hotstart.cluster.cluster import Cluster
from hotstart.cluster.errors import ClusterError

Say = Callable[[str], None]


def inside(cluster: Cluster, *command: str) -> tuple[str, ...]:
    return ("nsenter", f"--target={cluster.init_pid}", "--mount", "--net", "--", *command)


def _run(command: tuple[str, ...], failing: str) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    if ended.returncode:
        raise ClusterError(f"{failing}: {ended.stderr.strip() or ended.stdout.strip()}")
    return ended.stdout


def full_name(name: str) -> str:
    """The name as the kubelet will ask for it."""
    last = name.rpartition("/")[2]
    return name if ":" in last or "@" in last else f"{name}:latest"


def _loaded(cluster: Cluster) -> dict[str, str]:
    try:
        known: dict[str, str] = json.loads(cluster.layout.loaded_images.read_text())
    except FileNotFoundError:
        return {}
    return known


def _present(cluster: Cluster) -> frozenset[str]:
    listed = _run(inside(cluster, *argv.ctr("images", "list", "--quiet")), "containerd's images cannot be listed")
    return frozenset(listed.split())


def _import(cluster: Cluster, archive: Path, name: str | None) -> None:
    _run(
        inside(cluster, *argv.ctr("images", "import", str(archive))),
        f"{name or archive} cannot be imported into the cluster",
    )


def _image_id(name: str) -> str:
    if shutil.which("buildah") is None:
        raise ClusterError("buildah cannot be found: run `cluster/install-debian-packages`, or install buildah.")
    shown = _run(
        ("buildah", "inspect", "--type", "image", "--format", "{{.FromImageID}}", name),
        f"{name} is not in buildah's store (see `buildah images`) and is no file",
    )
    return shown.strip()


def load(cluster: Cluster, name: str, say: Say = lambda text: None) -> None:
    """Load one image by its name in buildah's store, or from an archive file."""
    if Path(name).is_file():
        _import(cluster, Path(name).resolve(), None)
        say(f"loaded {name}")
        return
    name = full_name(name)
    image, loaded = _image_id(name), _loaded(cluster)
    if loaded.get(name) == image and name in _present(cluster):
        say(f"{name} is already there")
        return
    cluster.layout.images.mkdir(exist_ok=True)
    archive = cluster.layout.images / "loading.tar"
    archive.unlink(missing_ok=True)
    _run(
        ("buildah", "push", "--quiet", "--disable-compression", name, f"docker-archive:{archive}:{name}"),
        f"{name} cannot be taken out of buildah's store",
    )
    _import(cluster, archive, name)
    archive.unlink()
    cluster.layout.loaded_images.write_text(json.dumps({**loaded, name: image}, indent=2) + "\n")
    say(f"loaded {name}")
