"""`gc`: garbage collection of a store by hand, for namespaces that no cluster has any more; a dry run by default."""

from __future__ import annotations

import os
import time
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from hotstart.cli.output import Output
from hotstart.engines.collection import ROOT, Marks, Survey, make_survey
from hotstart.engines.errors import Reason, Terminal
from hotstart.engines.key import engine_name
from hotstart.engines.manifest import engine_prefix
from hotstart.engines.s3 import StorePlace
from hotstart.engines.store import S3EngineStore
from hotstart.operator.api.scalars import Duration


def run_gc(options: Namespace, output: Output) -> None:
    """Every engine of the store with its fate; with --delete those that are garbage go."""
    store = S3EngineStore(make_place(options.store, options.endpoint, os.environ))
    survey = make_survey(
        store.list_objects(ROOT), make_marks(options.namespace_uid, options.keep), time.time(), parse_ttl(options.ttl)
    )
    deleted = 0
    for folder in survey.garbage if options.delete else ():
        store.delete_prefix(engine_prefix(folder.namespace_uid, folder.engine_key))
        deleted += folder.size
    output.show(describe(survey, deleted, dry_run=not options.delete))


def make_marks(namespaces: list[str], keep: list[str]) -> Marks:
    """What must stay: the named keys, in whichever of the named namespaces. Times count from the last write."""
    used = {(uid, engine_name(key)) for uid in namespaces for key in keep}
    return Marks(used, {}, frozenset(namespaces))


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


def describe(survey: Survey, deleted: int, *, dry_run: bool) -> dict[str, Any]:
    """Each engine on a line, and bytes by fate."""
    engines = [
        f"{folder.namespace_uid} {folder.engine_key[:12]} {folder.size} bytes {fate.value}"
        for folder, fate in survey.fates
    ]
    sizes = {fate.value: size for fate, size in survey.bytes_by_fate().items()}
    return {"engines": engines, "bytes": sizes, "deleted_bytes": deleted, "dry_run": dry_run}
