"""The process from start to end: health, connection, lease, leading, release."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
from hotstart.operator.adapters import metrics
from hotstart.operator.adapters.health import serve_health
from hotstart.operator.adapters.kube import KubeCluster, connect
from hotstart.operator.adapters.lease import LeaseHolder, LeaseLost
from hotstart.operator.adapters.signing_keys import ensure_signing_keys
from hotstart.operator.app.leader import make_leader, run_until_first
from hotstart.operator.core.errors import Terminal
from hotstart.operator.settings import Settings

log = logging.getLogger(__name__)
EXIT_LEASE_LOST = 3


@dataclass
class Vitals:
    """What /healthz asks: the leader while there is one; a standby is alive as long as it answers."""

    is_alive: Callable[[], bool] = lambda: True


async def run(settings: Settings) -> int:
    """Runs until a signal; returns the exit status.

    Raises:
        Terminal: there is no way to go on; the message says why.
    """
    stop = asyncio.Event()
    listen_for_signals(stop)
    api: Any = await connect()
    vitals = Vitals()
    runner = await serve_health(settings.port, lambda: vitals.is_alive(), lambda: True)
    try:
        return await lead_or_stop(settings, KubeCluster(api), stop, vitals)
    finally:
        await runner.cleanup()
        await api.close()


def listen_for_signals(stop: asyncio.Event) -> None:
    """Sets ``stop`` at SIGTERM and SIGINT, which a thread waits for: the loop's handlers are no place for ours.

    kopf puts its own there, at which it ends its watches and then waits 5 s for our tasks, which do not end by
    themselves (kopf 1.45, `_core/reactor/running.py`): so long nobody would lead.
    """
    numbers, loop = (signal.SIGTERM, signal.SIGINT), asyncio.get_running_loop()
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)

    def listen() -> None:
        signal.sigwait(numbers)
        loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=listen, name="signals", daemon=True).start()


async def lead_or_stop(settings: Settings, cluster: KubeCluster, stop: asyncio.Event, vitals: Vitals) -> int:
    """Stands by, leads, and releases the Lease at the end."""
    lease = LeaseHolder(cluster, settings.namespace, settings.identity)
    log.info("standing by namespace=%s identity=%s", settings.namespace, settings.identity)
    if not await first_of(stop, lease.acquire()):
        return 0
    metrics.LEADING.set(1)
    try:
        await first_of(stop, run_until_first(lease.keep(), lead(settings, cluster, vitals, epoch=lease.epoch)))
    except LeaseLost as lost:
        log.error("lease lost, this process ends cause=%s", lost)
        return EXIT_LEASE_LOST
    await lease.release()
    return 0


async def lead(settings: Settings, cluster: KubeCluster, vitals: Vitals, *, epoch: int) -> None:
    """All that a leader does, until it is cancelled."""
    settings = replace(settings, watch_namespaces=await find_standing(cluster, settings.watch_namespaces))
    secret = await ensure_signing_keys(cluster, settings.namespace, time.time())
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
    async with aiohttp.ClientSession(connector=connector) as session:
        leader = make_leader(settings, cluster, secret, session, epoch=epoch)
        vitals.is_alive = leader.is_alive
        await leader.run()


async def find_standing(cluster: KubeCluster, namespaces: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the watched namespaces that stand: in another nothing may be listed, which would end every watch.

    Raises:
        Terminal: there are some, and none stands.
    """
    found = {name: await cluster.get("Namespace", "", name) for name in namespaces}
    gone = [name for name, each in found.items() if each is None or each["metadata"].get("deletionTimestamp")]
    for name in gone:
        log.warning(
            "watched namespace is gone and left out: make it, upgrade the release, restart the operator name=%s", name
        )
    if gone and len(gone) == len(found):
        raise Terminal(
            f"None of operator.watchNamespaces stands ({', '.join(gone)}): make one and upgrade the release, or name "
            "others there."
        )
    return tuple(name for name in found if name not in gone)


async def first_of(stop: asyncio.Event, work: object) -> bool:
    """Whether ``work`` ended before ``stop`` was set; it is cancelled where it did not. Raises what it raised."""
    task = asyncio.ensure_future(work)  # type: ignore[call-overload]
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return True
        return False
    finally:
        stopping.cancel()
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
