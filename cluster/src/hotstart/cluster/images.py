"""Bring images into the cluster's containerd without a registry: from buildah's store, or from an archive file.

What containerd already has under the same image id is left out. From the store the layers are linked (`snapshots`);
where that is not possible, the image goes through an uncompressed archive.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hotstart.cluster import argv, snapshots
from hotstart.cluster.cluster import Cluster, write_whole
from hotstart.cluster.errors import ClusterError
from hotstart.cluster.locks import exclusive

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
    except (FileNotFoundError, ValueError):  # cut short, it knows of none: they are loaded again
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


def _shown(name: str) -> dict[str, Any]:
    if shutil.which("buildah") is None:
        raise ClusterError("buildah cannot be found: run `cluster/install-debian-packages`, or install buildah.")
    text = _run(
        ("buildah", "inspect", "--type", "image", name),
        f"{name} is not in buildah's store (see `buildah images`) and is no file",
    )
    shown: dict[str, Any] = json.loads(text)
    return shown


def _store() -> Path:
    return Path(json.loads(_run(("buildah", "info"), "buildah does not answer"))["store"]["GraphRoot"])


def _load_linked(cluster: Cluster, image: snapshots.StoredImage, archive: Path) -> None:
    node = cluster.layout.node(0)
    snapshots.link_layers(image, node, lambda command: _run(inside(cluster, *command), "containerd refused a layer"))
    archive.write_bytes(snapshots.archive(image))
    _import(cluster, archive, image.name)


def _load_packed(cluster: Cluster, name: str, archive: Path) -> None:
    _run(
        ("buildah", "push", "--quiet", "--disable-compression", name, f"docker-archive:{archive}:{name}"),
        f"{name} cannot be taken out of buildah's store",
    )
    _import(cluster, archive, name)


def load(cluster: Cluster, name: str, say: Say = lambda text: None) -> None:
    """Load one image by its name in buildah's store, or from an archive file."""
    if cluster.api_only:
        raise ClusterError("An API server alone takes no images: start a whole cluster, without --api-only.")
    if Path(name).is_file():
        _import(cluster, Path(name).resolve(), None)
        say(f"loaded {name}")
        return
    name = full_name(name)
    cluster.layout.images.mkdir(exist_ok=True)
    with exclusive(cluster.layout.images / ".lock", lambda: say("waiting for another image that is being loaded")):
        _load(cluster, name, say)


def _load(cluster: Cluster, name: str, say: Say) -> None:
    shown, loaded = _shown(name), _loaded(cluster)
    image = shown["FromImageID"]
    if loaded.get(name) == image and name in _present(cluster):
        say(f"{name} is already there")
        return
    archive = cluster.layout.images / "loading.tar"
    archive.unlink(missing_ok=True)
    if linkable := snapshots.stored(name, image, shown, _store()):
        _load_linked(cluster, linkable, archive)
    else:
        _load_packed(cluster, name, archive)
    archive.unlink()
    write_whole(cluster.layout.loaded_images, json.dumps({**loaded, name: image}, indent=2) + "\n")
    say(f"loaded {name}")
