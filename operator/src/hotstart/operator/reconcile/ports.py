"""What reconciliation needs of the world, as small Protocols. Adapters implement them; tests have doubles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hotstart.engines.collection import StoredObject
from hotstart.exchange.messages import (
    BuildReport,
    BuildRequest,
    PodReport,
    PodRequest,
    RouterReport,
    RouterRequest,
)
from hotstart.operator.core.events import EventNote
from hotstart.operator.core.writes import Object


class Clock(Protocol):
    """Time."""

    def now(self) -> float:
        """Seconds since the epoch."""


class Cluster(Protocol):
    """The API server. Objects are plain JSON. Raises Conflict, Forbidden, Refused or Retryable of core.errors."""

    async def list(
        self, kind: str, *, namespace: str = "", labels: str = "", fields: str = ""
    ) -> tuple[dict[str, Any], ...]:
        """All objects of a kind, in one namespace or in all; ``labels`` and ``fields`` are selectors."""

    async def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        """One object; None where there is none."""

    async def create(self, body: Object) -> dict[str, Any]:
        """Creates. Raises Conflict where it stands already."""

    async def apply(self, body: Object) -> dict[str, Any]:
        """Server-side apply with our field manager, which takes over fields from others."""

    async def patch(self, kind: str, namespace: str, name: str, body: Object) -> dict[str, Any] | None:
        """JSON merge patch; None where the object is gone."""

    async def patch_status(self, kind: str, namespace: str, name: str, body: Object) -> dict[str, Any] | None:
        """JSON merge patch of the status subresource; None where the object is gone."""

    async def delete(self, kind: str, namespace: str, name: str, uid: str) -> dict[str, Any] | None:
        """Deletes the object with that UID. The object where it goes on to stand for a while, else None."""

    async def set_scale(self, namespace: str, name: str, replicas: int) -> None:
        """Writes spec.replicas of a CompletionModel through /scale."""


class Events(Protocol):
    """Events about objects: sent best effort, each sentence once in a while."""

    async def send(self, obj: Object, notes: Sequence[EventNote], now: float) -> None:
        """Sends the notes about an object."""


class Agents(Protocol):
    """The exchange. Every call returns None where the agent is silent or refuses."""

    async def ask_pod(self, address: str, uid: str, request: PodRequest) -> PodReport | None:
        """One message to a pod agent."""

    async def ask_router(self, address: str, uid: str, request: RouterRequest) -> RouterReport | None:
        """One message to a router."""

    async def ask_builder(self, address: str, uid: str, request: BuildRequest) -> BuildReport | None:
        """One message to a builder."""


@dataclass(frozen=True)
class Upload:
    """One uploaded file: object key, upload id, the parts' ETags in order, size in bytes."""

    object_key: str
    upload_id: str
    etags: tuple[str, ...]
    size: int


@dataclass(frozen=True)
class OpenUpload:
    """A multipart upload that was begun and not ended; ``began`` in seconds since the epoch."""

    object_key: str
    upload_id: str
    began: float


class Store(Protocol):
    """The store of engines. Raises StoreFailed of core.errors."""

    @property
    def location(self) -> str:
        """URI of the bucket, with a slash at its end."""

    async def get_manifest(self, prefix: str) -> str | None:
        """The manifest's text; None where the engine is not whole."""

    async def put_manifest(self, prefix: str, text: str) -> str:
        """Writes the manifest unless one stands; the text that stands then."""

    async def get_quarantine(self, prefix: str) -> str | None:
        """The marker of an engine that failed its verification; None where there is none."""

    async def put_quarantine(self, prefix: str, text: str) -> None:
        """Leaves the marker, in the place of an older one."""

    async def create_upload(self, object_key: str) -> str:
        """A new multipart upload's id."""

    async def complete_upload(self, upload: Upload) -> None:
        """Completes an upload, once or again, and checks the object's size."""

    async def list_objects(self, prefix: str) -> tuple[StoredObject, ...]:
        """All objects under a prefix."""

    async def list_uploads(self, prefix: str) -> tuple[OpenUpload, ...]:
        """Open multipart uploads under a prefix."""

    async def abort_upload(self, object_key: str, upload_id: str) -> None:
        """Ends an upload and frees its parts."""

    async def delete_prefix(self, prefix: str) -> int:
        """Deletes an engine, its manifest first; how many objects went."""

    def presign_part(self, object_key: str, upload_id: str, number: int) -> str:
        """URL to PUT a part to."""

    def presign_put(self, object_key: str) -> str:
        """URL to PUT a whole object to."""

    def presign_get(self, object_key: str) -> str:
        """URL to GET an object from."""
