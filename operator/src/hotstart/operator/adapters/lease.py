"""Leadership by a Lease of coordination.k8s.io: who holds it may write; losing it ends the process.

Each taking raises `leaseTransitions`, which is the epoch of the exchange: agents refuse the messages of an older
leader. It is no less than the time, so that it rises too where the Lease was deleted. A holder that has not renewed for
the lease's duration, by the clock of whoever waits, has lost it: clocks of two machines are never compared.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from hotstart.exchange.names import LEASE
from hotstart.operator.adapters.kube import KubeCluster
from hotstart.operator.core.errors import Conflict, HotstartError

log = logging.getLogger(__name__)
DURATION_SECONDS = 10
RENEW_SECONDS = 2.0
GIVE_UP_SECONDS = 7.0  # without a renewal the holder stops itself before another may take over
EPOCH_BEGAN = 1_700_000_000  # seconds since 1970; counted from here, epochs fit `leaseTransitions` (int32) until 2091


class LeaseLost(HotstartError):
    """Another replica leads, or the API server has been silent for too long."""


@dataclass
class LeaseHolder:
    """One replica's side of the Lease."""

    cluster: KubeCluster
    namespace: str
    identity: str
    clock: Callable[[], float] = time.time
    epoch: int = 0
    _renewed: float = 0.0  # when the request was sent that last renewed it, by the event loop's clock
    _seen: tuple[str, int, str] = ("", -1, "")  # holder, transitions, renewTime as last seen
    _seen_at: float = 0.0

    async def acquire(self) -> int:
        """Waits until this replica holds the Lease; returns the epoch."""
        while True:
            try:
                if await self._try():
                    log.info("leading identity=%s epoch=%d", self.identity, self.epoch)
                    return self.epoch
            except Conflict:
                log.info("another replica was faster identity=%s", self.identity)
            except HotstartError as error:
                log.warning("lease unreadable error=%s", error)
            await asyncio.sleep(RENEW_SECONDS)

    async def keep(self) -> None:
        """Renews until it is lost. A renewal that hangs is given up in time, whatever failed before it.

        Raises:
            LeaseLost: this replica leads no longer.
        """
        while True:
            left = self._renewed + GIVE_UP_SECONDS - monotonic()
            await asyncio.sleep(min(RENEW_SECONDS, left))
            asked = monotonic()
            try:
                held = await asyncio.wait_for(self._renew(), self._renewed + GIVE_UP_SECONDS - asked)
            except (HotstartError, TimeoutError) as error:
                log.warning("lease not renewed error=%s", error)
                if monotonic() - self._renewed >= GIVE_UP_SECONDS:
                    raise LeaseLost(f"not renewed for {GIVE_UP_SECONDS:.0f} s: {str(error) or 'silence'}") from error
                continue
            if not held:
                raise LeaseLost("another replica holds the Lease, or it was deleted")
            self._renewed = asked

    async def release(self) -> None:
        """Gives it up, so that another replica leads at once."""
        try:
            standing = await self.cluster.get("Lease", self.namespace, LEASE)
            if standing is not None and standing["spec"].get("holderIdentity") == self.identity:
                spec = {**standing["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
                await self.cluster.replace({**standing, "kind": "Lease", "spec": spec})
                log.info("lease released identity=%s", self.identity)
        except HotstartError as error:
            log.warning("lease not released error=%s", error)

    async def _try(self) -> bool:
        asked = monotonic()
        standing = await self.cluster.get("Lease", self.namespace, LEASE)
        spec = {} if standing is None else standing.get("spec", {})
        seen = (spec.get("holderIdentity") or "", spec.get("leaseTransitions") or 0, spec.get("renewTime") or "")
        if seen != self._seen:
            self._seen, self._seen_at = seen, monotonic()
        duration = spec.get("leaseDurationSeconds") or DURATION_SECONDS
        if seen[0] and monotonic() - self._seen_at < duration:
            return False
        epoch = max(seen[1] + 1, int(self.clock()) - EPOCH_BEGAN)
        body = self._make(standing, epoch)
        await (self.cluster.create(body) if standing is None else self.cluster.replace(body))
        self.epoch, self._renewed = epoch, asked
        return True

    async def _renew(self) -> bool:
        """Whether it is still held; where somebody changed something else of it meanwhile, it is read again."""
        while True:
            standing = await self.cluster.get("Lease", self.namespace, LEASE)
            if standing is None or standing.get("spec", {}).get("holderIdentity") != self.identity:
                return False
            spec = {**standing["spec"], "renewTime": micro_time()}
            try:
                await self.cluster.replace({**standing, "kind": "Lease", "spec": spec})
                return True
            except Conflict:
                log.info("lease changed meanwhile, reading it again identity=%s", self.identity)

    def _make(self, standing: dict[str, Any] | None, epoch: int) -> dict[str, Any]:
        now = micro_time()
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": standing["metadata"] if standing else {"name": LEASE, "namespace": self.namespace},
            "spec": {
                "holderIdentity": self.identity,
                "leaseDurationSeconds": DURATION_SECONDS,
                "acquireTime": now,
                "renewTime": now,
                "leaseTransitions": epoch,
            },
        }


def monotonic() -> float:
    """The event loop's clock, in seconds."""
    return asyncio.get_running_loop().time()


def micro_time() -> str:
    """Now as Kubernetes' MicroTime."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
