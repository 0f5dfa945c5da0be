"""The fast way of an image from buildah's store into containerd: unpacked layers are linked, not packed and unpacked.

Both keep a layer as a folder for overlayfs, in the same form. So each layer's folder becomes a snapshot by hard links
(copies where the two are on different disks), and containerd then gets the image's manifest and configuration alone. A
layer's files are never written to, on either side: overlayfs copies before it writes.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotstart.cluster import argv, oci
from hotstart.cluster.layout import CONTAINERD_INSIDE, NodeLayout

Inside = Callable[[tuple[str, ...]], str]


@dataclass(frozen=True)
class Layer:
    """One layer of an image in buildah's store."""

    diff_id: str
    folder: Path


@dataclass(frozen=True)
class StoredImage:
    """An image in buildah's store: bottom layer first."""

    name: str
    manifest: bytes
    config: bytes
    layers: tuple[Layer, ...]


def layers_of(top: str, known: list[dict[str, Any]], store: Path) -> tuple[Layer, ...] | None:
    """The layers under and with `top`; None where the store does not hold them as it should."""
    by_id = {row["id"]: row for row in known}
    found: list[Layer] = []
    current: str | None = top
    while current:
        row = by_id.get(current)
        folder = store / "overlay" / current / "diff"
        if row is None or "diff-digest" not in row or not folder.is_dir():
            return None
        found.append(Layer(row["diff-digest"], folder))
        current = row.get("parent")
    return tuple(reversed(found))


def stored(name: str, image_id: str, shown: dict[str, Any], store: Path) -> StoredImage | None:
    """The image, from what `buildah inspect` shows of it; None where only the slow way is open."""
    images, layers = store / "overlay-images/images.json", store / "overlay-layers/layers.json"
    if not (images.is_file() and layers.is_file()):
        return None
    rows = [row for row in json.loads(images.read_text()) if row["id"] == image_id]
    found = layers_of(rows[0].get("layer", ""), json.loads(layers.read_text()), store) if rows else None
    manifest, config = shown["Manifest"].encode(), shown["Config"].encode()
    if not found or json.loads(config)["rootfs"]["diff_ids"] != [layer.diff_id for layer in found]:
        return None
    if json.loads(manifest)["config"]["digest"] != oci.digest(config):
        return None
    return StoredImage(name, manifest, config, found)


def upper_folder(mount: str) -> str:
    """The folder of a snapshot that is being made, out of the mount command that `ctr` shows for it."""
    found = re.search(r"upperdir=([^,\s]+)", mount) or re.search(r"-t bind (\S+)", mount)
    assert found is not None, mount
    return found[1]


def _fill(source: Path, target: Path) -> None:
    """Link all of a layer into a snapshot; copy it where it stands on another disk."""
    command = ("cp", "--archive", "--link", f"{source}/.", f"{target}/")
    if subprocess.run(command, capture_output=True, check=False).returncode:
        subprocess.run(("cp", "--archive", "--remove-destination", f"{source}/.", f"{target}/"), check=True)


def link_layers(image: StoredImage, node: NodeLayout, inside: Inside) -> None:
    """Make a snapshot of each layer that containerd does not have."""
    names = {line.split()[0] for line in inside(argv.ctr("snapshots", "list")).splitlines() if line}
    parent = ""
    for layer, chain in zip(image.layers, oci.chain_ids([item.diff_id for item in image.layers]), strict=True):
        if chain not in names:
            making = f"making-{chain[7:]}"
            if making in names:
                inside(argv.ctr("snapshots", "remove", making))
            inside(argv.ctr("snapshots", "prepare", making, *filter(None, (parent,))))
            place = upper_folder(inside(argv.ctr("snapshots", "mounts", "/mnt", making)))
            _fill(layer.folder, node.containerd / Path(place).relative_to(CONTAINERD_INSIDE))
            inside(argv.ctr("snapshots", "commit", chain, making))
        parent = chain


def archive(image: StoredImage) -> bytes:
    """What containerd needs of the image beside its layers."""
    return oci.archive(image.name, image.manifest, (image.config,))
