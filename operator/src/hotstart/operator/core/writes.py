"""Writes as values: what `decide` wants of the API server, for `apply` to carry out. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Object = Mapping[str, Any]


@dataclass(frozen=True)
class Create:
    """Create ``body``; that it stands already is no error, for its name says what it is."""

    body: Object
    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class Apply:
    """Server-side apply ``body`` with our field manager."""

    body: Object


@dataclass(frozen=True)
class Patch:
    """Merge patch of an object that stands."""

    kind: str
    namespace: str
    name: str
    body: Object
    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class Delete:
    """Delete the object with this UID, and no other of its name; that it is gone is no error."""

    kind: str
    namespace: str
    name: str
    uid: str
    reason: str = ""
    message: str = ""


Write = Create | Apply | Patch | Delete
