"""Events about objects: implements the port Events with core/v1 Events, each sentence once in ten minutes.

Best effort: an event that cannot be sent is logged and forgotten, for status says the same.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from hotstart.exchange.names import FIELD_MANAGER
from hotstart.operator.adapters.kube import KubeCluster
from hotstart.operator.core.errors import Conflict, HotstartError
from hotstart.operator.core.events import EventNote
from hotstart.operator.core.writes import Object

log = logging.getLogger(__name__)
QUIET_SECONDS = 600.0
MESSAGE_LIMIT = 1024


class KubeEvents:
    """Sends events; remembers what was sent."""

    def __init__(self, cluster: KubeCluster, instance: str) -> None:
        self._cluster = cluster
        self._instance = instance
        self._sent: dict[str, float] = {}

    async def send(self, obj: Object, notes: Sequence[EventNote], now: float) -> None:
        """Sends the notes that were not sent lately."""
        for note in notes:
            name = event_name(obj, note)
            if now - self._sent.get(name, -QUIET_SECONDS) < QUIET_SECONDS:
                continue
            self._sent = {known: at for known, at in self._sent.items() if now - at < QUIET_SECONDS}
            self._sent[name] = now
            try:
                await self._send(obj, note, name, now)
            except HotstartError as error:
                log.warning("event not sent reason=%s error=%s", note.reason, error)

    async def _send(self, obj: Object, note: EventNote, name: str, now: float) -> None:
        body = make_event(obj, note, name, self._instance, now)
        try:
            await self._cluster.create(body)
        except Conflict:
            again = {"lastTimestamp": body["lastTimestamp"], "message": body["message"]}
            await self._cluster.patch("Event", body["metadata"]["namespace"], name, again)


def event_name(obj: Object, note: EventNote) -> str:
    """The name of the event: the same words about the same object are the same event."""
    said = f"{obj['metadata'].get('uid', '')}/{note.reason}/{note.message}"
    return f"{obj['metadata']['name'][:200]}.{hashlib.sha256(said.encode()).hexdigest()[:16]}"


def make_event(obj: Object, note: EventNote, name: str, instance: str, now: float) -> dict[str, Any]:
    """The Event object."""
    meta = obj["metadata"]
    moment = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": meta.get("namespace") or "default"},
        "involvedObject": {
            "apiVersion": obj["apiVersion"],
            "kind": obj["kind"],
            "name": meta["name"],
            "namespace": meta.get("namespace", ""),
            "uid": meta.get("uid", ""),
            "resourceVersion": meta.get("resourceVersion", ""),
        },
        "type": "Warning" if note.warning else "Normal",
        "reason": str(note.reason),
        "message": note.message[:MESSAGE_LIMIT],
        "source": {"component": FIELD_MANAGER},
        "reportingComponent": FIELD_MANAGER,
        "reportingInstance": instance[:128],
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        "count": 1,
    }
