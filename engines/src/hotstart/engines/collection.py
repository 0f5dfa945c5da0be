"""Which engines in the store are garbage: mark (what is in use) and sweep (what has not been for a time). Pure.

An engine is in use while a model's spec or status names it, a pod of any revision serves it, or a build of it runs.
What falls out of use is kept for a time to live, so that going back to the previous revision builds nothing.
Half-finished uploads have a shorter one. The marker of a quarantine stays: it says that an engine must not be built.
Engines of namespaces that nobody here knows are another cluster's: reported, never touched.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from hotstart.engines.key import engine_name
from hotstart.engines.manifest import MANIFEST_NAME, QUARANTINE_NAME

ROOT = "engines/"
UNFINISHED_SECONDS = 24 * 3600.0  # a build takes four hours at most


@dataclass(frozen=True)
class StoredObject:
    """One object of the store: its key, bytes, and when it was last written (seconds since the epoch)."""

    key: str
    size: int
    modified: float


@dataclass(frozen=True)
class StoredFolder:
    """All objects of one engine, the newest of them of ``modified``.

    ``whole``: its manifest stands; ``marked``: the word that it must not be built does, and no engine.
    """

    namespace_uid: str
    engine_key: str
    size: int
    modified: float
    whole: bool
    marked: bool = False

    @property
    def place(self) -> tuple[str, str]:
        """Namespace's UID and the Engine's name: what uses are told by."""
        return self.namespace_uid, engine_name(self.engine_key)


class Fate(StrEnum):
    """What is to become of an engine's folder."""

    USED = "Used"
    KEPT = "Kept"  # not in use, within its time to live
    EXPIRED = "Expired"
    UNFINISHED = "Unfinished"  # no manifest, and young enough to be a build under way
    ABANDONED = "Abandoned"  # no manifest, and too old for it
    FOREIGN = "Foreign"  # of a namespace that is not known here


#: What a sweep deletes.
GARBAGE = frozenset((Fate.EXPIRED, Fate.ABANDONED))


@dataclass(frozen=True)
class Marks:
    """What is known of use. ``used`` and the keys of ``unused_since`` (seconds) are places; ``namespaces`` are UIDs.

    ``keeps_markers`` False: the namespaces are gone, and with them all that a marker is for.
    """

    used: Collection[tuple[str, str]]
    unused_since: Mapping[tuple[str, str], float]
    namespaces: Collection[str]
    keeps_markers: bool = True


@dataclass(frozen=True)
class Survey:
    """The store at one moment: each folder with its fate."""

    fates: tuple[tuple[StoredFolder, Fate], ...]

    @property
    def garbage(self) -> tuple[StoredFolder, ...]:
        """What a sweep may delete."""
        return tuple(folder for folder, fate in self.fates if fate in GARBAGE)

    def bytes_by_fate(self) -> dict[Fate, int]:
        """Bytes of every fate, also of those that do not occur."""
        found = dict.fromkeys(Fate, 0)
        for folder, fate in self.fates:
            found[fate] += folder.size
        return found


def make_folders(objects: Iterable[StoredObject]) -> tuple[StoredFolder, ...]:
    """The engines' folders among the store's objects, by namespace and key; other objects are no concern of ours."""
    found: dict[tuple[str, str], list[StoredObject]] = {}
    for stored in objects:
        parts = stored.key.split("/")
        if len(parts) >= 4 and f"{parts[0]}/" == ROOT and parts[1] and parts[2]:
            found.setdefault((parts[1], parts[2]), []).append(stored)
    return tuple(
        StoredFolder(
            namespace_uid=uid,
            engine_key=key,
            size=sum(stored.size for stored in members),
            modified=max(stored.modified for stored in members),
            whole=has(members, MANIFEST_NAME),
            marked=has(members, QUARANTINE_NAME) and not has(members, MANIFEST_NAME),
        )
        for (uid, key), members in sorted(found.items())
    )


def has(members: Iterable[StoredObject], name: str) -> bool:
    """Whether a file of that name stands directly in the engine's folder."""
    return any(stored.key.count("/") == 3 and stored.key.endswith(f"/{name}") for stored in members)


def decide_fate(folder: StoredFolder, marks: Marks, now: float, ttl: float) -> Fate:
    """The fate of one folder; ``ttl`` in seconds counts from when it was last in use, or else last written."""
    if folder.namespace_uid not in marks.namespaces:
        return Fate.FOREIGN
    if folder.place in marks.used:
        return Fate.USED
    if folder.marked and marks.keeps_markers:
        return Fate.KEPT
    since = max(folder.modified, marks.unused_since.get(folder.place, 0.0))
    if not (folder.whole or folder.marked):
        return Fate.ABANDONED if now - since > UNFINISHED_SECONDS else Fate.UNFINISHED
    return Fate.EXPIRED if now - since > ttl else Fate.KEPT


def make_survey(objects: Iterable[StoredObject], marks: Marks, now: float, ttl: float) -> Survey:
    """Every engine's folder with its fate."""
    return Survey(tuple((folder, decide_fate(folder, marks, now, ttl)) for folder in make_folders(objects)))
