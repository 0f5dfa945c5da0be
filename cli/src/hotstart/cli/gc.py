"""`gc`: garbage collection of a store by hand, for namespaces that no cluster has any more; a dry run by default.

No cluster is asked what is in use. Of a namespace that still stands only what --keep names is safe.
"""

from __future__ import annotations

import os
import re
import time
from argparse import Namespace
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from hotstart.cli.output import Output
from hotstart.engines.collection import ROOT, UNFINISHED_SECONDS, Fate, Marks, StoredObject, Survey, make_survey
from hotstart.engines.errors import Reason, Terminal
from hotstart.engines.kept import kept_path
from hotstart.engines.key import NAME_LENGTH, engine_name
from hotstart.engines.manifest import engine_prefix
from hotstart.engines.s3 import StorePlace
from hotstart.engines.store import OpenUpload, S3EngineStore
from hotstart.exchange.names import Kept
from hotstart.operator.api.scalars import Duration

_KEY = re.compile(f"[0-9a-f]{{{NAME_LENGTH}}}([0-9a-f]{{{64 - NAME_LENGTH}}})?")


@dataclass(frozen=True)
class Garbage:
    """What may go: engines (in the survey), uploads that nobody ends, what builds have kept."""

    survey: Survey
    uploads: tuple[OpenUpload, ...]
    kept: tuple[StoredObject, ...]


def run_gc(options: Namespace, output: Output) -> None:
    """Every engine of the store with its fate; with --delete those that are garbage go, and what is beside them."""
    ttl, keep = parse_ttl(options.ttl), parse_keep(options.keep)
    store = S3EngineStore(make_place(options.store, options.endpoint, os.environ))
    garbage = find_garbage(store, options.namespace_uid, keep, time.time(), ttl)
    deleted = delete(store, garbage) if options.delete else 0
    output.show(describe(garbage, deleted, dry_run=not options.delete))


def find_garbage(store: S3EngineStore, namespaces: list[str], keep: list[str], now: float, ttl: float) -> Garbage:
    """What of these namespaces may go.

    Raises:
        EngineError: the store; InvalidSpec, an engine that is to be kept is not there.
    """
    survey = make_survey(store.list_objects(ROOT), make_marks(namespaces, keep), now, ttl)
    check_kept(survey, namespaces, keep)
    prefixes = tuple(f"{ROOT}{uid}/" for uid in namespaces)
    uploads = tuple(
        upload
        for upload in store.list_uploads(ROOT)
        if upload.object_key.startswith(prefixes) and now - upload.began > UNFINISHED_SECONDS
    )
    kept = tuple(
        stored
        for uid, what in product(namespaces, Kept)
        for stored in store.list_objects(kept_path(uid, what, ""))
        if now - stored.modified > ttl
    )
    return Garbage(survey, uploads, kept)


def delete(store: S3EngineStore, garbage: Garbage) -> int:
    """Deletes it all; the bytes that were freed, without those of uploads, which no store tells."""
    for upload in garbage.uploads:
        store.abort_upload(upload.object_key, upload.upload_id)
    for folder in garbage.survey.garbage:
        store.delete_prefix(engine_prefix(folder.namespace_uid, folder.engine_key))
    for stored in garbage.kept:
        store.delete_prefix(stored.key)
    return sum(folder.size for folder in garbage.survey.garbage) + sum(stored.size for stored in garbage.kept)


def make_marks(namespaces: list[str], keep: list[str]) -> Marks:
    """What must stay: the named keys, in whichever of the named namespaces. Times count from the last write."""
    used = {(uid, engine_name(key)) for uid in namespaces for key in keep}
    return Marks(used, {}, frozenset(namespaces), keeps_markers=False)


def parse_keep(keys: Iterable[str]) -> list[str]:
    """The keys. Raises Terminal (InvalidSpec): one that is cut short would keep nothing."""
    for key in keys:
        if not _KEY.fullmatch(key):
            raise Terminal(
                Reason.INVALID_SPEC,
                f"--keep {key!r} is neither a key (64 lower-case hex digits) nor an Engine's name (its first 40).",
            )
    return list(keys)


def check_kept(survey: Survey, namespaces: list[str], keep: Iterable[str]) -> None:
    """Raises Terminal (InvalidSpec) where an engine that is to be kept is in none of the namespaces."""
    standing = [folder.engine_key for folder, _ in survey.fates if folder.namespace_uid in namespaces]
    for key in keep:
        if not any(found.startswith(key) for found in standing):
            raise Terminal(
                Reason.INVALID_SPEC,
                f"--keep {key} is no engine of the namespaces that --namespace-uid names; nothing was deleted.",
            )


def parse_ttl(text: str) -> float:
    """Seconds. Raises Terminal (InvalidSpec)."""
    try:
        return Duration(text).seconds
    except ValueError as error:
        raise Terminal(Reason.INVALID_SPEC, f"--ttl {text!r} is no duration such as 168h.") from error


def make_place(store: str, endpoint: str, environment: Mapping[str, str]) -> StorePlace:
    """The store; credentials from the environment. Raises Terminal (InvalidSpec)."""
    bucket = store.removeprefix("s3://").strip("/")
    if not store.startswith("s3://") or not bucket or "/" in bucket:
        raise Terminal(Reason.INVALID_SPEC, f"--store {store!r}: it must be s3://BUCKET.")
    return StorePlace(
        bucket=bucket,
        endpoint=endpoint or environment.get("AWS_ENDPOINT_URL", ""),
        region=environment.get("AWS_REGION", ""),
        access_key=environment.get("AWS_ACCESS_KEY_ID", ""),
        secret_key=environment.get("AWS_SECRET_ACCESS_KEY", ""),
        session_token=environment.get("AWS_SESSION_TOKEN", ""),
        credentials_from="the environment",
    )


def describe(garbage: Garbage, deleted: int, *, dry_run: bool) -> dict[str, Any]:
    """Each engine on a line, what is beside them, and bytes by fate."""
    fates = garbage.survey.fates
    sizes = garbage.survey.bytes_by_fate()
    return {
        "engines": [f"{f.namespace_uid} {f.engine_key} {f.size} bytes {fate.value}" for f, fate in fates],
        "uploads": [f"{upload.object_key} {upload.upload_id}" for upload in garbage.uploads],
        "kept": [f"{stored.key} {stored.size} bytes" for stored in garbage.kept],
        "bytes": {fate.value: sizes[fate] for fate in Fate},
        "deleted_bytes": deleted,
        "dry_run": dry_run,
    }
