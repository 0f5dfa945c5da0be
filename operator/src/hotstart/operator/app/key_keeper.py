"""Keeps the exchange's keys while this process leads: 1 gather, 2 decide, 3 write the Secret, publish, sign.

Publication is the keeper's own, in every namespace that has models or their pods, also of paused models: a namespace
that lacks a key holds back the key that would sign.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from hotstart.exchange.client import ExchangeClient
from hotstart.exchange.signing import make_jwks, make_signing_key
from hotstart.operator.adapters.kube import KubeCluster
from hotstart.operator.adapters.signing_keys import KeySecret, ensure_signing_keys, replace_signing_keys
from hotstart.operator.core.errors import HotstartError
from hotstart.operator.core.key_rotation import DatedKey, decide_keys
from hotstart.operator.core.service_manifests import make_keys_config
from hotstart.operator.reconcile.observed import Key, Observed
from hotstart.operator.reconcile.ports import Clock
from hotstart.operator.reconcile.work_queue import WorkQueue

log = logging.getLogger(__name__)
LOOK_SECONDS = 15.0
REPUBLISH_SECONDS = 300.0  # what was published is published again: somebody may have deleted it


@dataclass
class KeyKeeper:
    """One a process. ``period`` is the age in seconds at which a key is replaced."""

    cluster: KubeCluster
    namespace: str
    clock: Clock
    period: float
    client: ExchangeClient
    observed: Observed
    queue: WorkQueue
    keys: tuple[DatedKey, ...]
    _published: float | None = None  # when ``keys`` were first published everywhere
    _applied: float | None = None  # when last

    @property
    def jwks(self) -> str:
        """The public keys as they are to be published."""
        return make_jwks(tuple(dated.key for dated in self.keys))

    async def keep(self) -> None:
        """Looks after the keys until it is cancelled."""
        while True:
            await self.turn_quietly()
            await asyncio.sleep(LOOK_SECONDS)

    async def turn_quietly(self) -> None:
        """One turn; a failure is logged and left to the next one."""
        try:
            await self.turn()
        except HotstartError as error:
            log.warning("signing keys not looked after error=%s", error)

    async def turn(self) -> None:
        """Brings the keys nearer to what they should be.

        Raises:
            HotstartError: the Secret cannot be read or written; the keys stay as they were.
        """
        now = self.clock.now()
        secret = await ensure_signing_keys(self.cluster, self.namespace, now)  # 1
        self._take(secret.keys)
        plan = decide_keys(self.keys, self._published, now, period=self.period, forced=secret.forced)  # 2
        made = (DatedKey(make_signing_key(), now),) if plan.next_due else ()
        await self._write(secret, (*made, *plan.kept))  # 3
        self.client.sign_with(plan.signing)
        if self._published is None or self._applied is None or now - self._applied >= REPUBLISH_SECONDS:
            await self._publish(now)

    async def _write(self, secret: KeySecret, keys: tuple[DatedKey, ...]) -> None:
        if keys == secret.keys:
            return
        await replace_signing_keys(self.cluster, secret, keys)
        log.info("signing keys changed kids=%s", ",".join(dated.key.kid for dated in keys))
        self._take(keys)

    def _take(self, keys: tuple[DatedKey, ...]) -> None:
        if keys != self.keys:
            self.keys, self._published = keys, None

    async def _publish(self, now: float) -> None:
        """Applies the ConfigMap everywhere; models that were decided on meanwhile look at it again."""
        found = (obj for kind in ("CompletionModel", "Pod", "Job") for obj in self.observed.all(kind))
        namespaces = sorted({self.namespace, *(obj["metadata"]["namespace"] for obj in found)})
        whole = all(await asyncio.gather(*(self._apply(namespace) for namespace in namespaces)))
        if not whole:
            return
        self._applied = now
        if self._published is None:
            self._published = now
            for model in self.observed.all("CompletionModel"):
                self.queue.add(Key("CompletionModel", model["metadata"]["namespace"], model["metadata"]["name"]))

    async def _apply(self, namespace: str) -> bool:
        try:
            self.observed.put(await self.cluster.apply(make_keys_config(namespace, self.jwks)))
        except HotstartError as error:
            log.warning("public keys not published namespace=%s error=%s", namespace, error)
            return False
        return True
