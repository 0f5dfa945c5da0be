"""A checkpoint in a folder of an S3 bucket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from hotstart.engines.checkpoints.choose import ListedFile
from hotstart.engines.checkpoints.places import S3Place
from hotstart.engines.checkpoints.source import BLOCK, BrokenStream, pick_files
from hotstart.engines.errors import Reason, Retryable
from hotstart.engines.s3 import StorePlace, error_code, first_line, make_client, store_errors
from urllib3.exceptions import HTTPError


class S3Source:
    """Implements ``Source``."""

    def __init__(self, place: S3Place, store: StorePlace) -> None:
        self._place = place
        self._store = store
        self._client = make_client(store)

    @property
    def where(self) -> str:
        return self._place.uri

    def list_files(self) -> tuple[ListedFile, ...]:
        prefix = self._place.prefix
        with store_errors(self._store, f"list {self._place.uri}"):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._place.bucket, Prefix=f"{prefix}{self._place.only}", Delimiter="/"
            )
            entries = [entry for page in pages for entry in page.get("Contents", ())]
        files = [
            ListedFile(entry["Key"].removeprefix(prefix), int(entry["Size"]), entry.get("ETag", ""))
            for entry in entries
            if not entry["Key"].endswith("/")
        ]
        return pick_files(self._place, files)

    def blocks(self, file: ListedFile, start: int) -> Iterator[bytes]:
        body = self._open(file, start)
        try:
            yield from body.iter_chunks(BLOCK)
        except (BotoCoreError, HTTPError, OSError) as error:
            raise BrokenStream(first_line(error)) from error
        finally:
            body.close()

    def local_path(self, file: ListedFile) -> Path | None:
        return None

    def check_unchanged(self, file: ListedFile) -> None:
        """What was downloaded stays as it is."""

    def _open(self, file: ListedFile, start: int) -> Any:
        wanted: dict[str, str] = {"IfMatch": file.etag} if file.etag else {}
        if start:
            wanted["Range"] = f"bytes={start}-"
        with store_errors(self._store, f"read {file.name} of {self._place.uri}"):
            try:
                key = f"{self._place.prefix}{file.name}"
                return self._client.get_object(Bucket=self._place.bucket, Key=key, **wanted)["Body"]
            except ClientError as error:
                if error_code(error) in ("PreconditionFailed", "412"):
                    raise Retryable(
                        Reason.CHECKPOINT_CHANGED,
                        f"{file.name} of {self._place.uri} was replaced while it was read: wait until the upload ends.",
                    ) from error
                raise
