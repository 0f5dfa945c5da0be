"""The sandbox image that every pod starts with, assembled by hand: one static program, no registry, no builder."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from pathlib import Path
from typing import Any

from hotstart.cluster.plan import PAUSE_IMAGE

LAYER = "application/vnd.oci.image.layer.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def _tar(files: dict[str, tuple[bytes, int]]) -> bytes:
    """A tar of name -> (content, mode), equal for equal content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, (content, mode) in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def _described(kind: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "digest": _digest(content), "size": len(content)}


def archive(program: bytes, architecture: str) -> bytes:
    """The image as an OCI archive that `ctr images import` takes."""
    layer = _tar({"pause": (program, 0o755)})
    config = json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {"Entrypoint": ["/pause"], "User": "65535:65535"},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
    ).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": _described(CONFIG, config),
            "layers": [_described(LAYER, layer)],
        }
    ).encode()
    reference = {**_described(MANIFEST, manifest), "annotations": {"io.containerd.image.name": PAUSE_IMAGE}}
    index = json.dumps({"schemaVersion": 2, "manifests": [reference]}).encode()
    blobs = {f"blobs/sha256/{_digest(item)[7:]}": (item, 0o644) for item in (layer, config, manifest)}
    version = json.dumps({"imageLayoutVersion": "1.0.0"}).encode()
    return _tar({"oci-layout": (version, 0o644), "index.json": (index, 0o644), **blobs})


def write(program: Path, place: Path) -> None:
    place.write_bytes(archive(program.read_bytes(), ARCHITECTURES[platform.machine()]))
