"""The engine store: implements the port Store over the blocking S3 store of the engines package, in threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from hotstart.engines.collection import StoredObject
from hotstart.engines.errors import EngineError
from hotstart.engines.s3 import StorePlace
from hotstart.engines.store import EngineStore, S3EngineStore
from hotstart.operator.core.errors import StoreFailed
from hotstart.operator.reconcile.ports import OpenUpload, Upload
from hotstart.operator.settings import StoreSettings

ResultT = TypeVar("ResultT")


class ThreadedStore:
    """Runs each request of a blocking store in a thread; presigning makes no request and runs at once."""

    def __init__(self, store: EngineStore, location: str) -> None:
        self._store = store
        self._location = location

    @property
    def location(self) -> str:
        """URI of the bucket, with a slash at its end."""
        return self._location

    async def get_manifest(self, prefix: str) -> str | None:
        """The manifest's text; None where the engine is not whole."""
        return await self._run(lambda: self._store.get_manifest(prefix))

    async def put_manifest(self, prefix: str, text: str) -> str:
        """Writes the manifest unless one stands; the text that stands then."""
        return await self._run(lambda: self._store.put_manifest(prefix, text))

    async def get_quarantine(self, prefix: str) -> str | None:
        """The marker of an engine that failed its verification; None where there is none."""
        return await self._run(lambda: self._store.get_quarantine(prefix))

    async def put_quarantine(self, prefix: str, text: str) -> None:
        """Leaves the marker, in the place of an older one."""
        await self._run(lambda: self._store.put_quarantine(prefix, text))

    async def create_upload(self, object_key: str) -> str:
        """A new multipart upload's id."""
        return await self._run(lambda: self._store.create_upload(object_key))

    async def complete_upload(self, upload: Upload) -> None:
        """Completes an upload, once or again, and checks the object's size."""
        await self._run(
            lambda: self._store.complete_upload(upload.object_key, upload.upload_id, upload.etags, size=upload.size)
        )

    async def list_objects(self, prefix: str) -> tuple[StoredObject, ...]:
        """All objects under a prefix."""
        return await self._run(lambda: self._store.list_objects(prefix))

    async def list_uploads(self, prefix: str) -> tuple[OpenUpload, ...]:
        """Open multipart uploads under a prefix."""
        found = await self._run(lambda: self._store.list_uploads(prefix))
        return tuple(OpenUpload(upload.object_key, upload.upload_id, upload.began) for upload in found)

    async def abort_upload(self, object_key: str, upload_id: str) -> None:
        """Ends an upload and frees its parts; one that is gone is no error."""
        await self._run(lambda: self._store.abort_upload(object_key, upload_id))

    async def delete_prefix(self, prefix: str) -> int:
        """Deletes an engine, its manifest first; how many objects went."""
        return await self._run(lambda: self._store.delete_prefix(prefix))

    def presign_part(self, object_key: str, upload_id: str, number: int) -> str:
        """URL to PUT a part to."""
        return self._store.presign_part(object_key, upload_id, number)

    def presign_get(self, object_key: str) -> str:
        """URL to GET an object from."""
        return self._store.presign_get(object_key)

    def presign_put(self, object_key: str) -> str:
        """URL to PUT a whole object to."""
        return self._store.presign_put(object_key)

    async def _run(self, call: Callable[[], ResultT]) -> ResultT:
        try:
            return await asyncio.to_thread(call)
        except EngineError as error:
            raise StoreFailed(error.message, str(error.reason)) from error


def make_store(settings: StoreSettings) -> ThreadedStore:
    """The store that the operator's settings name."""
    store = S3EngineStore(
        StorePlace(
            bucket=settings.bucket,
            endpoint=settings.endpoint,
            region=settings.region,
            access_key=settings.access_key,
            secret_key=settings.secret_key,
            session_token=settings.session_token,
            credentials_from="the Secret named by store.secretName of the chart",
        )
    )
    return ThreadedStore(store, store.location)
