"""Whether an engine is damaged in the store, so that it has to be built again. Pure.

A pod that got other bytes than the manifest says has asked for them twice, and still one pod may be wrong: its memory,
its disk, its way to the store. So either the store itself shows it, or a second pod says the same. What the store shows
for the price of a list: a manifest that cannot be read; a file that is gone, of another size, or written after the
manifest, which is written last.
"""

from __future__ import annotations

from collections.abc import Iterable

from hotstart.engines.collection import StoredObject
from hotstart.engines.manifest import MANIFEST_NAME, BadManifest, Manifest, parse_manifest
from hotstart.operator.api import Engine

ANNOTATION_MENDED = "hotstart.dev/mended-at"  # on the Engine, seconds since the epoch: when its files were last deleted
ACCUSERS = 2  # pods that must agree where the store shows nothing
MEND_SECONDS = 3600.0  # between two times for one engine: whatever damages it would do so again


def find_damage(text: str, key: str, prefix: str, objects: Iterable[StoredObject], accusers: int) -> str:
    """What is wrong with the engine under ``prefix``, whose manifest is ``text``; '' where nothing is certain.

    ``accusers`` is the number of pods that got other bytes than this manifest says.
    """
    try:
        manifest = parse_manifest(text, key=key)
    except BadManifest as error:
        return str(error)
    if not accusers:
        return ""
    seen = find_in_store(manifest, {stored.key.removeprefix(prefix): stored for stored in objects})
    if not seen and accusers >= ACCUSERS:
        return f"{accusers} pods got other bytes than its manifest says"
    return seen


def find_in_store(manifest: Manifest, objects: dict[str, StoredObject]) -> str:
    """The first file that is not as the manifest's builder left it; '' where all seem to be."""
    written = objects.get(MANIFEST_NAME)
    for file in manifest.files:
        stored = objects.get(file.path)
        if stored is None:
            return f"{file.path} is gone"
        if stored.size != file.size:
            return f"{file.path} has {stored.size} bytes instead of {file.size}"
        if written is not None and stored.modified > written.modified:
            return f"{file.path} was written after the engine was complete"
    return ""


def read_mended(engine: Engine) -> float:
    """When the engine's files were last deleted because of damage (seconds since the epoch); 0 where never."""
    text = engine.metadata.annotations.get(ANNOTATION_MENDED, "")
    return float(text) if text.isdigit() else 0.0
