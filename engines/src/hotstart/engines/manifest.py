"""The manifest of an engine: what it is made of, file by file. Written last, so half an upload is no engine. Pure.

In the store an engine lies under ``engines/<namespace uid>/<key>/``, with ``manifest.json`` beside its files. Among
these is the tokenizer that it was built with. A further tokenizer of the same weights is a *bundle*: its files take
the place of the engine's own, and lie with a manifest of their own under ``bundles/<tokenizer digest>/``.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any

from hotstart.engines.key import canonical_json, make_key
from hotstart.engines.profile import Profile
from hotstart.engines.verification import Verification

MANIFEST_NAME = "manifest.json"
QUARANTINE_NAME = "quarantine.json"  # stands in the store where an engine was built that failed its verification
_SHA256 = re.compile("[0-9a-f]{64}")


class BadManifest(Exception):
    """The text is no manifest, or does not describe the engine that it stands beside."""


@dataclass(frozen=True)
class ManifestFile:
    """``path`` relative to the engine's folder, ``size`` in bytes, ``sha256`` in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """One engine. ``inputs`` are those of its key; ``facts`` are of the checkpoint (layers, vocabulary, ...)."""

    key: str
    inputs: dict[str, Any]
    files: tuple[ManifestFile, ...]
    tokenizer_digest: str
    facts: dict[str, Any] = field(default_factory=dict)
    build_seconds: float = 0.0
    verification: Verification | None = None
    profile: Profile | None = None
    calibration_failure: str | None = None  # why there is no profile

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def to_json(self) -> str:
        """Canonical JSON; parts that were not made are left out."""
        return canonical_json({name: value for name, value in asdict(self).items() if value is not None})


def engine_prefix(namespace_uid: str, key: str) -> str:
    """The engine's folder in the store, with a slash at its end."""
    return f"engines/{namespace_uid}/{key}/"


def bundle_prefix(namespace_uid: str, key: str, tokenizer_digest: str) -> str:
    """The folder of one tokenizer's bundle in the store, with a slash at its end."""
    return f"{engine_prefix(namespace_uid, key)}bundles/{tokenizer_digest}/"


def manifest_sha256(text: str) -> str:
    """The digest that assignments name."""
    return hashlib.sha256(text.encode()).hexdigest()


def parse_manifest(text: str, *, key: str) -> Manifest:
    """The manifest in ``text``, checked against the key that it is said to have.

    Raises:
        BadManifest: it is cut short, of another key, or has an unsafe path.
    """
    try:
        value = json.loads(text)
        files = tuple(ManifestFile(**entry) for entry in value.pop("files"))
        verification, profile = value.pop("verification", None), value.pop("profile", None)
        manifest = Manifest(
            files=files,
            verification=None if verification is None else Verification.from_json(verification),
            profile=None if profile is None else Profile.from_json(profile),
            **value,
        )
        same = manifest.key == key == make_key(manifest.inputs)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadManifest(f"manifest of {key[:12]}: {type(error).__name__}: {error}") from error
    if not same:
        raise BadManifest(f"manifest of {key[:12]} describes another engine ({str(manifest.key)[:12]})")
    for file in manifest.files:
        _check_file(file, key)
    paths = [file.path for file in manifest.files]
    if not paths or len(set(paths)) != len(paths):
        raise BadManifest(f"manifest of {key[:12]} names no file, or one twice")
    return manifest


def _check_file(file: ManifestFile, key: str) -> None:
    """Raises BadManifest for what must never become a path, a size or a digest on a node."""
    parts = file.path.split("/") if isinstance(file.path, str) else [""]
    if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts) or file.path == MANIFEST_NAME:
        raise BadManifest(f"manifest of {key[:12]}: unsafe path {file.path!r}")
    if not isinstance(file.size, int) or isinstance(file.size, bool) or file.size < 0:
        raise BadManifest(f"manifest of {key[:12]}: {file.path} has the size {file.size!r}")
    if not isinstance(file.sha256, str) or not _SHA256.fullmatch(file.sha256):
        raise BadManifest(f"manifest of {key[:12]}: {file.path} has no sha256")
