"""The engine store: implements the port Store over the blocking S3 store of the engines package, in threads."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from hotstart.engines.collection import StoredObject
from hotstart.engines.errors import EngineError
from hotstart.engines.s3 import StorePlace
from hotstart.engines.store import EngineStore, S3EngineStore
from hotstart.operator.core.errors import StoreFailed
from hotstart.operator.reconcile.ports import OpenUpload, Upload
from hotstart.operator.settings import CREDENTIALS, SESSION_TOKEN, StoreSettings

log = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")


class ThreadedStore:
    """Runs each request of a blocking store in a thread; presigning makes no request and runs at once.

    ``find_store`` gives the store as it is to be asked now.
    """

    def __init__(self, find_store: Callable[[], EngineStore], location: str) -> None:
        self._find_store = find_store
        self._location = location

    @property
    def _store(self) -> EngineStore:
        return self._find_store()

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


class FollowedStore:
    """The S3 store with the credentials of now: a new client where the Secret's files say something else."""

    def __init__(self, place: StorePlace, folder: Path | None) -> None:
        self._place = place
        self._folder = folder
        self._store = S3EngineStore(place)

    def current(self) -> S3EngineStore:
        """The store to ask now."""
        place = self._place if self._folder is None else with_credentials(self._place, self._folder)
        if place != self._place:
            self._store, self._place = S3EngineStore(place), place
            log.info("credentials of the engine store have changed and are taken up")
        return self._store


def with_credentials(place: StorePlace, folder: Path) -> StorePlace:
    """The place with the credentials in the folder's files; as it is while these cannot be read."""
    try:
        access_key, secret_key = ((folder / name).read_text().strip() for name in CREDENTIALS)
        token = folder / SESSION_TOKEN
        session_token = token.read_text().strip() if token.exists() else ""
    except (OSError, ValueError) as error:
        log.warning("credentials of the engine store unreadable, those of before are used error=%s", error)
        return place
    return replace(place, access_key=access_key, secret_key=secret_key, session_token=session_token)


def make_store(settings: StoreSettings) -> ThreadedStore:
    """The store that the operator's settings name."""
    place = StorePlace(
        bucket=settings.bucket,
        endpoint=settings.endpoint,
        region=settings.region,
        access_key=settings.access_key,
        secret_key=settings.secret_key,
        session_token=settings.session_token,
        credentials_from="the Secret named by store.secretName of the chart",
    )
    followed = FollowedStore(place, settings.credentials)
    return ThreadedStore(followed.current, followed.current().location)
