"""Names and annotations of what the operator makes, beside those that it shares with its agents. Pure.

A Job's name, a pod's host name and a label's value have 63 characters at most, a CompletionModel's name 253: ``fit``
shortens, with a digest at the end, so that two long names stay two.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from hotstart.engines.key import canonical_json
from hotstart.exchange.names import GROUP

ANNOTATION_DECIDED_AT = f"{GROUP}/decided-at"  # seconds since the epoch: when a pod was decided on
ANNOTATION_DRAINING_SINCE = f"{GROUP}/draining-since"  # seconds since the epoch
ANNOTATION_ATTEMPT = f"{GROUP}/attempt"  # attempt of a Job, from 0
ANNOTATION_BUNDLE = f"{GROUP}/bundle"  # digest of the tokenizer whose bundle a Job makes
LABEL_LIMIT = 63
BUILD_KEY_LENGTH = 24


def digest_of(value: Any) -> str:
    """sha256 in hex of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def fit(name: str, limit: int = LABEL_LIMIT) -> str:
    """``name``, or its start with 8 hex of its sha256 where it is longer than ``limit`` characters."""
    if len(name) <= limit:
        return name
    return f"{name[: limit - 9].rstrip('-.')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def inspect_job_name(model: str, spec_hash: str, attempt: int) -> str:
    """``{model}-inspect-{hash8}-{attempt}``, at most 63 characters."""
    tail = f"-inspect-{spec_hash[:8]}-{attempt}"
    return fit(model.replace(".", "-"), LABEL_LIMIT - len(tail)) + tail


def build_job_name(key: str, attempt: int) -> str:
    """``build-{key[:24]}-{attempt}``."""
    return f"build-{key[:BUILD_KEY_LENGTH]}-{attempt}"


def bundle_job_name(key: str, tokenizer_digest: str, attempt: int) -> str:
    """``bundle-{key[:24]}-{tokenizer[:8]}-{attempt}``."""
    return f"bundle-{key[:BUILD_KEY_LENGTH]}-{tokenizer_digest[:8]}-{attempt}"


def pod_name(model: str, revision: str, slot: int, attempt: int) -> str:
    """``{model}-{revision[:8]}-{slot}-{attempt}``, at most 63 characters."""
    tail = f"-{revision[:8]}-{slot}-{attempt}"
    return fit(model.replace(".", "-"), LABEL_LIMIT - len(tail)) + tail


def attempt_of(metadata: Mapping[str, Any]) -> int:
    """The attempt of a Job or pod: its annotation, else the number at the end of its name, else 0."""
    text = str(metadata.get("annotations", {}).get(ANNOTATION_ATTEMPT, metadata["name"].rpartition("-")[2]))
    return int(text) if text.isdigit() else 0
