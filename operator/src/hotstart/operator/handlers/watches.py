"""Kopf's watches. An event updates the observed view and puts keys into the queue; it decides nothing.

Kopf gives the watches and nothing else here: `on.event` alone makes no finalizer, no annotation and no event.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Any

import kopf
from hotstart.operator.adapters.kinds import KINDS
from hotstart.operator.adapters.kube import is_in_cluster
from hotstart.operator.core.writes import Object
from hotstart.operator.reconcile.observed import SELECTORS, WATCHED

log = logging.getLogger(__name__)
INACTIVITY_SECONDS = 330.0  # a watch without any event, not even a bookmark, is begun again

OnEvent = Callable[[str, Object, bool], None]  # kind, object, deleted


def make_settings() -> kopf.OperatorSettings:
    """Kopf without postings, scanning and peering."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.watching.inactivity_timeout = INACTIVITY_SECONDS
    settings.watching.server_timeout = 280
    settings.watching.reconnect_backoff = 1.0
    settings.networking.error_backoffs = (1, 1, 2, 3, 5, 8)
    for kind, selector in SELECTORS.items():
        place = KINDS[kind]
        plural = f"{place.plural}.{place.group}" if place.group else place.plural
        settings.watching.label_selectors[plural] = selector
    return settings


def make_registry(on_event: OnEvent) -> kopf.OperatorRegistry:
    """One handler for each watched kind."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) if is_in_cluster() else kopf.login_with_kubeconfig(**kwargs)

    for kind in WATCHED:
        place = KINDS[kind]
        handler = make_handler(kind, on_event)
        kopf.on.event(place.group, place.version, place.plural, registry=registry, id=f"see-{place.plural}")(handler)
    return registry


def make_handler(kind: str, on_event: OnEvent) -> Callable[..., Any]:
    """The handler of one kind."""

    async def handle(event: Any, **_: Any) -> None:
        obj = dict(event["object"])
        obj.setdefault("kind", kind)
        obj.setdefault("apiVersion", KINDS[kind].api_version)
        on_event(kind, obj, event.get("type") == "DELETED")

    return handle


async def run_watches(on_event: OnEvent, namespaces: Collection[str]) -> None:
    """Watches until cancelled or told to stop by a signal. ``namespaces`` empty means all."""
    await kopf.operator(
        registry=make_registry(on_event),
        settings=make_settings(),
        standalone=True,
        clusterwide=not namespaces,
        namespaces=tuple(namespaces),
    )
