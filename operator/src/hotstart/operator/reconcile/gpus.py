"""Gathers which GPUs there are and who holds them: nodes by the watch, pods by a list, where the operator may see them.

Pods that are not ours are not watched: they are listed while something waits for a GPU, and not more often than every
15 s. An operator that is bound to some namespaces may not list them all; then only its own pods count, and what it
calls free is "at most".
"""

from __future__ import annotations

import logging

from hotstart.operator.core.errors import Forbidden, HotstartError
from hotstart.operator.core.gpu_fleet import GpuFleet, make_gpu_node, make_gpu_pod
from hotstart.operator.reconcile.memory import Memory
from hotstart.operator.reconcile.observed import Observed
from hotstart.operator.reconcile.ports import Clock, Cluster

log = logging.getLogger(__name__)
LIST_SECONDS = 15.0
#: Pods that hold what they ask for: they have a node and have not ended.
HOLDING = "spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed"


async def gather_gpus(cluster: Cluster, clock: Clock, observed: Observed, memory: Memory) -> GpuFleet:
    """All that is known of GPUs now."""
    nodes = tuple(fact for node in observed.all("Node") if (fact := make_gpu_node(node)) is not None)
    if nodes and clock.now() - memory.gpus_listed_at >= LIST_SECONDS:
        memory.gpus_listed_at = clock.now()
        await list_holders(cluster, memory)
    holders = dict(memory.gpu_pods)
    for pod in observed.all("Pod"):  # ours, as they are now
        holder = make_gpu_pod(pod)
        if holder is not None:
            holders[holder.uid] = holder
        else:
            holders.pop(pod["metadata"]["uid"], None)
    return GpuFleet(nodes, tuple(holders.values()), whole=memory.gpus_whole)


async def list_holders(cluster: Cluster, memory: Memory) -> None:
    """Takes into memory which pods hold GPUs; what was known stays where the API server does not tell."""
    try:
        pods = await cluster.list("Pod", fields=HOLDING)
    except Forbidden:
        memory.gpu_pods, memory.gpus_whole = {}, False
        return
    except HotstartError as error:
        log.warning("pods not listed, GPUs in use are those of before error=%s", error)
        return
    facts = (make_gpu_pod(pod) for pod in pods)
    memory.gpu_pods, memory.gpus_whole = {fact.uid: fact for fact in facts if fact is not None}, True
