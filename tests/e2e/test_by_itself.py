"""What nobody has to be woken for: a damaged engine is built again, a drain waits, a cordoned node is left."""

from __future__ import annotations

import json

import pytest
from hotstart.demo import stage
from hotstart.demo.kube import condition
from hotstart.demo.story import StepFailed

from tests.e2e.test_main_job import ask

pytestmark = pytest.mark.e2e


def damage(tenant) -> None:
    """One bit of the engine's weights in the store."""
    s3 = stage.make_client(tenant.platform.cluster)
    (engine,) = tenant.kube.items("engines", tenant.namespace)
    uid = tenant.kube.get("namespaces", tenant.namespace)["metadata"]["uid"]
    key = f"engines/{uid}/{engine['spec']['key']}/model.bin"
    body = bytearray(s3.get_object(Bucket=stage.STORE_BUCKET, Key=key)["Body"].read())
    body[len(body) // 2] ^= 1
    s3.put_object(Bucket=stage.STORE_BUCKET, Key=key, Body=bytes(body))


def events(tenant) -> str:
    found = tenant.kube.items("events", tenant.namespace)
    return "\n".join(f"{event['reason']}: {event['message']}" for event in found)


def test_a_flipped_bit_in_the_store_is_found_before_serving_and_the_engine_built_again(tenant) -> None:
    tenant.apply_model()
    tenant.wait_ready()
    before = ask(tenant).choices[0].text
    damage(tenant)
    tenant.scale_model(2)
    tenant.wait(lambda: "EngineCorrupt: The engine is damaged in the store" in events(tenant), "an event says why")
    assert ask(tenant).choices[0].text == before, "what serves goes on"
    tenant.wait_ready(replicas=2)
    assert ask(tenant).choices[0].text == before
    (engine,) = tenant.kube.items("engines", tenant.namespace)
    assert engine["status"]["attempts"] == 2


def test_the_only_replica_is_not_evicted(serving) -> None:
    (pod,) = serving.pods()
    name = pod["metadata"]["name"]
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": serving.namespace}}
    path = f"/api/v1/namespaces/{serving.namespace}/pods/{name}/eviction"

    def refused() -> str:
        try:
            serving.kube.run("kubectl", "create", "--raw", f"{path}?dryRun=All", "-f", "-", stdin=json.dumps(body))
        except StepFailed as failure:
            return str(failure)
        return ""

    assert "disruption budget" in serving.wait(refused, "the PodDisruptionBudget counts the pod")
    with pytest.raises(StepFailed, match="disruption budget"):
        serving.kube.run("kubectl", "create", "--raw", path, "-f", "-", stdin=json.dumps(body))
    assert [pod["metadata"]["name"] for pod in serving.pods()] == [name]
    assert ask(serving).choices[0].text


@pytest.fixture
def cordoned_later(platform):
    """Cordons the only node when called; it is free again after the test."""
    (node,) = platform.kube.items("nodes")
    name = node["metadata"]["name"]
    yield lambda: platform.kube.run("kubectl", "cordon", name)
    platform.kube.run("kubectl", "uncordon", name)


def test_a_cordoned_node_is_left_only_once_there_is_another(cordoned_later, settled) -> None:
    settled.apply_model()
    settled.wait_ready()
    (pod,) = settled.pods()
    cordoned_later()

    def waits_for_a_node() -> bool:
        others = [other for other in settled.pods() if other["metadata"]["name"] != pod["metadata"]["name"]]
        return any(is_unschedulable(other) for other in others)

    settled.wait(waits_for_a_node, "another pod is made, and waits for a node")
    assert pod["metadata"]["name"] in [each["metadata"]["name"] for each in settled.pods()]
    assert ask(settled).choices[0].text
    assert condition(settled.model(), "EndpointReady")["status"] == "True"

    def told() -> bool:
        return "No node takes" in condition(settled.model(), "Progressing").get("message", "")

    settled.wait(told, "status says what waits")


def is_unschedulable(pod) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    return any(c["type"] == "PodScheduled" and c.get("reason") == "Unschedulable" for c in conditions)
