"""Image archives as containerd takes them, written by hand: small, and equal for equal content."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

LAYER = "application/vnd.oci.image.layer.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def described(kind: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "digest": digest(content), "size": len(content)}


def tar(files: Mapping[str, tuple[bytes, int]]) -> bytes:
    """A tar of name -> (content, mode), without times and owners."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, (content, mode) in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def archive(name: str, manifest: bytes, blobs: Sequence[bytes]) -> bytes:
    """The archive of one image: its manifest, and those of the manifest's blobs that the taker does not have yet."""
    reference = {**described(MANIFEST, manifest), "annotations": {"io.containerd.image.name": name}}
    index = json.dumps({"schemaVersion": 2, "manifests": [reference]}).encode()
    version = json.dumps({"imageLayoutVersion": "1.0.0"}).encode()
    content = {f"blobs/sha256/{digest(item)[7:]}": (item, 0o644) for item in (manifest, *blobs)}
    return tar({"oci-layout": (version, 0o644), "index.json": (index, 0o644), **content})


def chain_ids(layers: Sequence[str]) -> tuple[str, ...]:
    """The name of each layer together with all below it, bottom first, as the image specification defines it."""
    chain: list[str] = []
    for layer in layers:
        chain.append(digest(f"{chain[-1]} {layer}".encode()) if chain else layer)
    return tuple(chain)
