"""The sandbox image that every pod starts with, assembled by hand: one static program, no registry, no builder."""

from __future__ import annotations

import json
import platform
from pathlib import Path

from hotstart.cluster import oci
from hotstart.cluster.plan import PAUSE_IMAGE

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def archive(program: bytes, architecture: str) -> bytes:
    """The image as an OCI archive that `ctr images import` takes."""
    layer = oci.tar({"pause": (program, 0o755)})
    config = json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {"Entrypoint": ["/pause"], "User": "65535:65535"},
            "rootfs": {"type": "layers", "diff_ids": [oci.digest(layer)]},
        }
    ).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": oci.MANIFEST,
            "config": oci.described(oci.CONFIG, config),
            "layers": [oci.described(oci.LAYER, layer)],
        }
    ).encode()
    return oci.archive(PAUSE_IMAGE, manifest, (config, layer))


def write(program: Path, place: Path) -> None:
    place.write_bytes(archive(program.read_bytes(), ARCHITECTURES[platform.machine()]))
