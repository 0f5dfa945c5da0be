"""The exchange goes on through a rotation of its keys and through a deleted Lease: real API server, real agents."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest
from aiohttp.test_utils import TestServer
from hotstart.exchange.client import ExchangeClient, ExchangeFailed
from hotstart.exchange.messages import PodReport, PodRequest, PodState
from hotstart.exchange.names import KEYS_CONFIGMAP, LEASE, SIGNING_SECRET
from hotstart.exchange.server import KeySet, add_exchange, make_app
from hotstart.operator.adapters.kube import KubeCluster, connect
from hotstart.operator.adapters.signing_keys import ensure_signing_keys
from hotstart.operator.app.key_keeper import LOOK_SECONDS, KeyKeeper
from hotstart.operator.core.key_rotation import ANNOTATION_ROTATE, PUBLISH_SECONDS, RETIRE_SECONDS
from hotstart.operator.reconcile.observed import Observed

from tests.operator.doubles import Clock
from tests.operator.live import until

pytestmark = pytest.mark.integration

PERIOD = 720 * 3600.0
KUBELET_LOOKS = 6  # of the keeper, 90 s: so late a kubelet shows a changed ConfigMap


@pytest.fixture
async def operators_cluster(stage, monkeypatch):
    """The API server with the operator's own rights, and no more."""
    monkeypatch.setenv("KUBECONFIG", str(stage.kubeconfig))
    cluster = KubeCluster(await connect())
    yield cluster
    await cluster.close()


class Agent:
    """A pod agent whose file of keys is mounted by a slow kubelet."""

    def __init__(self, cluster: KubeCluster, namespace: str, file: Path, clock: Clock) -> None:
        self.cluster, self.namespace, self.file = cluster, namespace, file
        self.coming: list[str] = []
        app = make_app()
        add_exchange(
            app, keys=KeySet(file), audience="pod-1", request_type=PodRequest, answer=self.answer, clock=clock.now
        )
        self.server = TestServer(app)

    async def answer(self, request: PodRequest) -> PodReport:
        return PodReport(pod_uid="pod-1", state=PodState.EMPTY)

    async def sync(self) -> None:
        """One look of the keeper later."""
        standing = await self.cluster.get("ConfigMap", self.namespace, KEYS_CONFIGMAP)
        assert standing is not None
        self.coming.append(standing["data"]["jwks.json"])
        late = self.coming[max(0, len(self.coming) - 1 - KUBELET_LOOKS)]
        if not self.file.exists() or self.file.read_text() != late:
            fresh = self.file.with_suffix(".new")
            fresh.write_text(late)
            fresh.rename(self.file)


async def test_an_agent_takes_every_message_through_a_rotation(stage, operators_cluster, tmp_path) -> None:
    clock, system = Clock(), stage.system
    clock.seconds = time.time()
    secret = await ensure_signing_keys(operators_cluster, system, clock.now())
    first = secret.keys[0].key
    observed = Observed()
    observed.put({"kind": "CompletionModel", "metadata": {"name": "m", "namespace": stage.models, "uid": "u"}})
    agent = Agent(stage.cluster, stage.models, tmp_path / "jwks.json", clock)
    async with agent.server, aiohttp.ClientSession() as session:
        client = ExchangeClient(session=session, key=first, epoch=1, clock=clock.now)
        queue = SimpleNamespace(add=lambda key: None)
        keeper = KeyKeeper(operators_cluster, system, clock, PERIOD, client, observed, queue, secret.keys)

        async def go_on(seconds: float) -> None:
            for _ in range(int(seconds / LOOK_SECONDS) + 1):
                await keeper.turn()
                await agent.sync()
                await client.ask(f"{agent.server.host}:{agent.server.port}", "pod-1", PodRequest(), PodReport)
                clock.seconds += LOOK_SECONDS

        await go_on(60)
        note = {"metadata": {"annotations": {ANNOTATION_ROTATE: "now"}}}
        await stage.cluster.patch("Secret", system, SIGNING_SECRET, note)
        await go_on(60)
        assert len(json.loads(agent.coming[-1])["keys"]) == 2
        await go_on(PUBLISH_SECONDS + RETIRE_SECONDS + 60)
        await go_on(KUBELET_LOOKS * LOOK_SECONDS)
        assert [key["kid"] for key in json.loads(agent.file.read_text())["keys"]] == [keeper.keys[0].key.kid]
        client.sign_with(first)
        with pytest.raises(ExchangeFailed, match="unknown key"):
            await client.ask(f"{agent.server.host}:{agent.server.port}", "pod-1", PodRequest(), PodReport)


async def keys_in(stage, namespace: str) -> int:
    found = await stage.cluster.get("ConfigMap", namespace, KEYS_CONFIGMAP)
    return 0 if found is None else len(json.loads(found["data"]["jwks.json"])["keys"])


async def test_the_operator_rotates_when_it_is_told_to_and_serves_on(stage) -> None:
    stage.start("op-1")
    await stage.make_ready()
    note = {"metadata": {"annotations": {ANNOTATION_ROTATE: "now"}}}
    await stage.cluster.patch("Secret", stage.system, SIGNING_SECRET, note)
    for namespace in (stage.system, stage.models):
        await until(lambda name=namespace: has_two(stage, name), f"two keys are published in {namespace}")
    standing = await stage.cluster.get("Secret", stage.system, SIGNING_SECRET)
    assert ANNOTATION_ROTATE not in standing["metadata"].get("annotations", {})
    await scale_and_hear(stage)


async def has_two(stage, namespace: str) -> bool:
    return await keys_in(stage, namespace) == 2


async def scale_and_hear(stage) -> None:
    """The operator acts, and the router hears of it: the exchange goes on."""
    change = {"spec": {"scaling": {"mode": "External"}, "replicas": 2}}
    await stage.cluster.patch("CompletionModel", stage.models, "m", change)
    pods = await until(lambda: two_pods(stage), "a second pod")
    for pod in pods:
        if not pod.get("status", {}).get("podIP"):
            await stage.play_pod(pod)
    await until(lambda: any(len(route.endpoints) == 2 for route in stage.routes), "the router hears of both pods")


async def two_pods(stage):
    pods = await stage.serving_pods()
    return pods if len(pods) == 2 else None


async def test_after_the_lease_was_deleted_agents_and_routers_obey_the_next_leader(stage) -> None:
    first = stage.start("op-1")
    await stage.make_ready()
    await stage.cluster.request("DELETE", f"/apis/coordination.k8s.io/v1/namespaces/{stage.system}/leases/{LEASE}")
    await until(lambda: first.popen.poll() is not None, "the leader ends: it holds no Lease")
    assert first.popen.returncode == 3
    stage.start("op-2")  # as the kubelet starts its container again
    await until(stage.holder, "it leads")
    await scale_and_hear(stage)
