"""Hotstart's engine store, for the operator: engines as objects under ``engines/<namespace uid>/<key>/``.

The operator alone has its credentials. A builder uploads parts by presigned URLs; the operator completes the uploads
and writes ``manifest.json`` last and only once, so that half an upload is never an engine. All calls block.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from botocore.exceptions import ClientError
from hotstart.engines.collection import StoredObject
from hotstart.engines.errors import Reason, Retryable, Terminal
from hotstart.engines.manifest import MANIFEST_NAME, QUARANTINE_NAME, BadManifest, Manifest, parse_manifest
from hotstart.engines.s3 import NOT_FOUND, StorePlace, error_code, http_status, make_client, store_errors

URL_LIFETIME = 900  # seconds
_CONFLICTS = frozenset(("PreconditionFailed", "ConditionalRequestConflict", "412", "409"))


@dataclass(frozen=True)
class OpenUpload:
    """A multipart upload that was begun and neither completed nor aborted; ``began`` in seconds since the epoch."""

    object_key: str
    upload_id: str
    began: float


class EngineStore(Protocol):
    """What the operator needs of a store of engines. Every call blocks and may raise ``EngineError``."""

    def check(self) -> None:
        """Raises where the bucket cannot be read."""

    def get_manifest(self, prefix: str) -> str | None:
        """Text of the manifest under ``prefix`` (see ``engine_prefix``), or None: there is no whole engine."""

    def put_manifest(self, prefix: str, text: str) -> str:
        """Writes the manifest unless one stands; returns the text that stands, which describes the same files."""

    def get_quarantine(self, prefix: str) -> str | None:
        """Text of the marker that an engine left which failed its verification, or None."""

    def put_quarantine(self, prefix: str, text: str) -> None:
        """Leaves that marker, in the place of an older one."""

    def size(self, object_key: str) -> int | None:
        """Size of an object in bytes, or None."""

    def create_upload(self, object_key: str) -> str:
        """Begins a multipart upload and returns its id."""

    def presign_part(self, object_key: str, upload_id: str, number: int) -> str:
        """URL to PUT the part ``number`` (from 1) to. Makes no request."""

    def presign_get(self, object_key: str) -> str:
        """URL to GET the object from, also in ranges. Makes no request."""

    def presign_put(self, object_key: str) -> str:
        """URL to PUT a whole object to. Makes no request."""

    def complete_upload(self, object_key: str, upload_id: str, etags: Sequence[str], *, size: int) -> None:
        """Puts the parts together; done already is done. Raises where the object is not of ``size`` bytes then."""

    def list_objects(self, prefix: str) -> tuple[StoredObject, ...]:
        """All objects under ``prefix``."""

    def list_uploads(self, prefix: str) -> tuple[OpenUpload, ...]:
        """Open uploads under ``prefix``."""

    def abort_upload(self, object_key: str, upload_id: str) -> None:
        """Ends an upload and frees its parts; one that is gone is no error."""

    def delete_prefix(self, prefix: str) -> int:
        """Deletes an engine, its manifest first, and returns the number of objects deleted."""


class S3EngineStore:
    """Implements ``EngineStore`` on any S3 with conditional writes. Thread-safe."""

    def __init__(
        self, place: StorePlace, *, clock: Callable[[], float] = time.time, lifetime: int = URL_LIFETIME
    ) -> None:
        self._place = place
        self._client = make_client(place)
        self._clock = clock
        self._lifetime = lifetime

    @property
    def location(self) -> str:
        """The bucket as a URI, with a slash at its end."""
        return f"s3://{self._place.bucket}/"

    def check(self) -> None:
        with store_errors(self._place, f"list the engine store {self.location}"):
            self._client.list_objects_v2(Bucket=self._place.bucket, MaxKeys=1)

    def get_manifest(self, prefix: str) -> str | None:
        return self._get_text(f"{prefix}{MANIFEST_NAME}")

    def get_quarantine(self, prefix: str) -> str | None:
        return self._get_text(f"{prefix}{QUARANTINE_NAME}")

    def put_quarantine(self, prefix: str, text: str) -> None:
        key = f"{prefix}{QUARANTINE_NAME}"
        with store_errors(self._place, f"write {self.location}{key}"):
            self._client.put_object(
                Bucket=self._place.bucket, Key=key, Body=text.encode(), ContentType="application/json"
            )

    def _get_text(self, key: str) -> str | None:
        with store_errors(self._place, f"read {self.location}{key}"):
            try:
                body = self._client.get_object(Bucket=self._place.bucket, Key=key)["Body"].read()
            except ClientError as error:
                if _is_missing(error):
                    return None
                raise
        return str(body.decode(errors="replace"))  # what is damaged is told by whoever parses it

    def put_manifest(self, prefix: str, text: str) -> str:
        key = f"{prefix}{MANIFEST_NAME}"
        with store_errors(self._place, f"write {self.location}{key}"):
            try:
                self._client.put_object(
                    Bucket=self._place.bucket,
                    Key=key,
                    Body=text.encode(),
                    ContentType="application/json",
                    IfNoneMatch="*",
                )
                return text
            except ClientError as error:
                if error_code(error) not in _CONFLICTS:
                    raise
        standing = self.get_manifest(prefix)
        if standing is None:
            raise Retryable(Reason.STORE_CONFLICT, f"{self.location}{key} was written and deleted at the same time.")
        check_same_engine(text, standing, f"{self.location}{key}")
        return standing

    def size(self, object_key: str) -> int | None:
        with store_errors(self._place, f"look at {self.location}{object_key}"):
            try:
                head = self._client.head_object(Bucket=self._place.bucket, Key=object_key)
            except ClientError as error:
                if _is_missing(error):
                    return None
                raise
        return int(head["ContentLength"])

    def create_upload(self, object_key: str) -> str:
        with store_errors(self._place, f"begin the upload of {self.location}{object_key}"):
            return str(self._client.create_multipart_upload(Bucket=self._place.bucket, Key=object_key)["UploadId"])

    def presign_part(self, object_key: str, upload_id: str, number: int) -> str:
        parameters = {"Bucket": self._place.bucket, "Key": object_key, "UploadId": upload_id, "PartNumber": number}
        return str(self._client.generate_presigned_url("upload_part", parameters, ExpiresIn=self._lifetime))

    def presign_get(self, object_key: str) -> str:
        parameters = {"Bucket": self._place.bucket, "Key": object_key}
        return str(self._client.generate_presigned_url("get_object", parameters, ExpiresIn=self._lifetime))

    def presign_put(self, object_key: str) -> str:
        parameters = {"Bucket": self._place.bucket, "Key": object_key}
        return str(self._client.generate_presigned_url("put_object", parameters, ExpiresIn=self._lifetime))

    def complete_upload(self, object_key: str, upload_id: str, etags: Sequence[str], *, size: int) -> None:
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, start=1)]
        with store_errors(self._place, f"complete the upload of {self.location}{object_key}"):
            try:
                self._client.complete_multipart_upload(
                    Bucket=self._place.bucket, Key=object_key, UploadId=upload_id, MultipartUpload={"Parts": parts}
                )
            except ClientError as error:
                if error_code(error) not in ("NoSuchUpload", "404"):
                    raise  # an upload that is gone was completed by the operator before: the size tells
        found = self.size(object_key)
        if found != size:
            raise Retryable(
                Reason.BUILD_FAILED,
                f"{self.location}{object_key} has {found} bytes after its upload, the builder sent {size}.",
            )

    def list_objects(self, prefix: str) -> tuple[StoredObject, ...]:
        with store_errors(self._place, f"list {self.location}{prefix}"):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._place.bucket, Prefix=prefix)
            return tuple(
                StoredObject(str(entry["Key"]), int(entry["Size"]), float(entry["LastModified"].timestamp()))
                for page in pages
                for entry in page.get("Contents", ())
            )

    def list_uploads(self, prefix: str) -> tuple[OpenUpload, ...]:
        with store_errors(self._place, f"list the uploads under {self.location}{prefix}"):
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self._place.bucket, Prefix=prefix
            )
            return tuple(
                OpenUpload(entry["Key"], entry["UploadId"], self._began(entry))
                for page in pages
                for entry in page.get("Uploads", ())
                if entry["Key"].startswith(prefix)
            )

    def abort_upload(self, object_key: str, upload_id: str) -> None:
        with store_errors(self._place, f"abort the upload of {self.location}{object_key}"):
            try:
                self._client.abort_multipart_upload(Bucket=self._place.bucket, Key=object_key, UploadId=upload_id)
            except ClientError as error:
                if error_code(error) not in ("NoSuchUpload", "404"):
                    raise

    def delete_prefix(self, prefix: str) -> int:
        with store_errors(self._place, f"delete {self.location}{prefix}"):
            found = (stored.key for stored in self.list_objects(prefix))
            keys = sorted(found, key=lambda key: key != f"{prefix}{MANIFEST_NAME}")
            for key in keys:
                self._client.delete_object(Bucket=self._place.bucket, Key=key)
        return len(keys)

    def _began(self, entry: dict[str, Any]) -> float:
        began = entry.get("Initiated")
        return float(began.timestamp()) if began is not None else self._clock()


def check_same_engine(ours: str, standing: str, where: str) -> None:
    """Raises Terminal (StoreConflict) unless two manifests describe the same files of the same key. Pure."""
    key = str(json.loads(ours)["key"])
    try:
        same = _content(parse_manifest(ours, key=key)) == _content(parse_manifest(standing, key=key))
    except BadManifest as error:
        raise Terminal(
            Reason.STORE_CONFLICT, f"{where} is damaged ({error}): delete the engine in the store."
        ) from error
    if not same:
        raise Terminal(
            Reason.STORE_CONFLICT,
            f"{where} stands already and describes other files under the same key: delete the engine in the store.",
        )


def _content(manifest: Manifest) -> tuple[object, ...]:
    return manifest.key, manifest.tokenizer_digest, sorted((f.path, f.size, f.sha256) for f in manifest.files)


def _is_missing(error: ClientError) -> bool:
    return error_code(error) in NOT_FOUND or (http_status(error) == 404 and error_code(error) != "NoSuchBucket")
