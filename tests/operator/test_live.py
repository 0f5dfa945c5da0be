"""The operator's process against a real API server: the flow, leadership, a killed leader, a silent second run."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import aiohttp
import pytest
from hotstart.operator.core.errors import Conflict

from tests.operator.live import until

pytestmark = pytest.mark.integration


async def versions(stage) -> dict[str, str]:
    found = {}
    for kind in ("CompletionModel", "Engine", "Pod", "Service", "PodDisruptionBudget", "Job", "ConfigMap"):
        for obj in await stage.cluster.list(kind, namespace=stage.models):
            found[f"{kind}/{obj['metadata']['name']}"] = obj["metadata"]["resourceVersion"]
    return found


async def get(port: int, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as response:
        return response.status, await response.text()


async def test_a_model_is_served_and_a_killed_leader_is_followed_without_a_write(stage):
    first = stage.start("op-1")
    await stage.make_ready()
    assert [route.model for route in stage.routes] == [f"{stage.models}/m"]
    status = (await stage.model())["status"]
    assert status["builds"] == 0, "the engine was found in the store"
    assert status["readyReplicas"] == 1

    second = stage.start("op-2")
    await until(lambda: answers(second.port), "the standby is ready")

    async def settled():
        before = await versions(stage)
        await asyncio.sleep(2)
        return before if await versions(stage) == before else None

    before = await until(settled, "the objects settle")
    first.kill()
    await until(lambda: leads(stage, "op-2"), "the other replica leads", 20)
    await until(lambda: reconciled(second.port), "the new leader has reconciled")
    assert await versions(stage) == before

    await stage.cluster.patch(
        "CompletionModel", stage.models, "m", {"spec": {"scaling": {"mode": "External"}, "replicas": 2}}
    )
    await until(lambda: two_pods(stage), "the new leader acts")
    text = (await get(second.port, "/metrics"))[1]
    assert "hotstart_leading 1.0" in text and "hotstart_reconciles_total" in text


async def answers(port: int) -> bool:
    try:
        return (await get(port, "/readyz"))[0] == 200
    except aiohttp.ClientError:
        return False


async def leads(stage, name: str) -> bool:
    return (await stage.holder()).startswith(f"{name}_")


async def reconciled(port: int) -> bool:
    text = (await get(port, "/metrics"))[1]
    counts = [line for line in text.splitlines() if line.startswith("hotstart_reconciles_total{")]
    return len(counts) >= 2


async def two_pods(stage) -> bool:
    return len(await stage.serving_pods()) == 2


async def test_one_of_two_leads_and_hands_over_at_its_end(stage):
    first, second = stage.start("op-1"), stage.start("op-2")
    holder = await until(stage.holder, "one leads")
    leader, other = (first, second) if holder.startswith("op-1_") else (second, first)
    await until(lambda: answers(other.port), "the standby is ready")
    assert await leader.terminate() == 0
    await until(lambda: changed(stage, holder), "the other leads")
    assert other.popen.poll() is None


async def changed(stage, holder: str) -> bool:
    return await stage.holder() not in ("", holder)


async def test_a_leader_whose_lease_is_taken_ends(stage):
    process = stage.start("op-1")
    await until(stage.holder, "it leads")

    async def take() -> bool:
        lease = await stage.cluster.get("Lease", stage.system, "hotstart-operator")
        try:
            await stage.cluster.replace({**lease, "spec": {**lease["spec"], "holderIdentity": "somebody-else"}})
        except Conflict:
            return False
        return True

    await until(take, "the lease is taken")
    await until(lambda: process.popen.poll() is not None, "the process ends")
    assert process.popen.returncode == 3


def test_a_wrong_environment_is_one_sentence():
    done = subprocess.run(
        [sys.executable, "-m", "hotstart.operator.cli"], env={"HOTSTART_NAMESPACE": "x"}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("hotstart-operator: HOTSTART_IMAGE_TRITON_CPU is not set")
    assert len(done.stderr.splitlines()) == 1
