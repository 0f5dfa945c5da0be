"""From a spec to a served model, and what happens when something on the way goes wrong; all of it in memory."""

from __future__ import annotations

import json

import pytest
from hotstart.engines.builder.termination import make_failure, make_failure_message
from hotstart.engines.errors import Reason as EngineReason
from hotstart.engines.errors import Terminal
from hotstart.exchange.messages import PodFailure
from hotstart.operator.core.errors import StoreFailed

from tests.operator.world import World


@pytest.fixture
def world() -> World:
    return World()


async def test_a_model_becomes_ready(world):
    world.apply()
    await world.run_until(lambda: world.is_ready() and "coldStart" in world.model()["status"])
    status = world.model()["status"]
    assert status["readyReplicas"] == 1
    assert status["builds"] == 1
    assert not [note for note in world.events.notes if note.warning], "nothing went wrong, so nothing is warned of"
    assert status["engine"]["name"] == world.cluster.all("Engine")[0]["metadata"]["name"]
    (route,) = world.agents.routes
    assert route.model == "team/m"
    assert [endpoint.pod for endpoint in route.endpoints] == [world.pods()[0]["metadata"]["name"]]
    assert status["coldStart"]["pod"] == world.pods()[0]["metadata"]["name"]
    assert {"fetch", "load", "schedule", "other"} == set(status["coldStart"]["phases"])


async def test_a_second_run_writes_nothing(world):
    world.apply()
    await world.run_until(world.is_ready)
    await world.run(5)
    before = list(world.cluster.writes)
    await world.run(5)
    world.restart()
    await world.run(5)
    assert world.cluster.writes[len(before) :] == []


async def test_a_second_model_on_the_same_checkpoint_makes_no_build(world):
    world.apply()
    await world.run_until(world.is_ready)
    world.apply("other")
    await world.run_until(lambda: world.is_ready("other"))
    assert len(world.jobs("build")) <= 1
    assert sum(write.startswith("create Job/build-") for write in world.cluster.writes) == 1
    assert world.model("other")["status"]["builds"] == 0


async def test_an_engine_in_the_store_is_never_built_again(world):
    world.apply()
    await world.run_until(world.is_ready)
    world.cluster.drop("CompletionModel", "m")
    for engine in world.cluster.all("Engine"):
        world.cluster.drop("Engine", engine["metadata"]["name"])
    world.cluster.writes.clear()
    world.apply()
    await world.run_until(world.is_ready)
    assert not [write for write in world.cluster.writes if write.startswith("create Job/build-")]
    assert world.model()["status"]["builds"] == 0


async def test_a_missing_secret_is_named_within_ten_seconds_and_heals(world):
    world.missing_secrets = {"reader"}
    world.apply()
    await world.run(10)
    found = world.conditions()["EngineReady"]
    assert (found["status"], found["reason"]) == ("False", "SecretNotFound")
    assert "'reader'" in found["message"] and "create it" in found["message"]
    world.missing_secrets = set()
    await world.run_until(world.is_ready)


async def test_a_refused_secret_is_named_and_mending_it_is_enough(world):
    said = {"reason": "AccessDenied", "message": "Its AWS_SECRET_ACCESS_KEY is wrong.", "retryable": True}
    world.inspections["s3://models/tiny/"] = {"failure": said}
    world.apply()
    await world.run(10)
    found = world.conditions()["EngineReady"]
    assert found["reason"] == "AccessDenied" and "'reader'" in found["message"]
    world.inspections.clear()
    await world.run_until(world.is_ready)
    assert len(world.jobs("inspect")) <= 3


async def test_what_cannot_pass_is_not_retried_often(world):
    said = {"reason": "UnsupportedArchitecture", "message": "GPT-2 is not supported.", "retryable": False}
    world.inspections["s3://models/tiny/"] = {"failure": said}
    world.apply()
    await world.run(60)
    made = [write for write in world.cluster.writes if write.startswith("create Job/m-inspect")]
    assert len(made) <= 3
    assert world.conditions()["EngineReady"]["reason"] == "UnsupportedArchitecture"


async def test_a_build_that_cannot_succeed_is_not_retried(world):
    failure = make_failure(Terminal(EngineReason.VERIFICATION_FAILED, "Tokens differ."), EngineReason.BUILD_FAILED)
    lines = ["line 8", "line 9", "ERROR build failed reason=VerificationFailed message=Tokens differ."]
    world.build_exit = json.loads(make_failure_message(failure, lines))
    world.apply()
    await world.run(120)
    assert len(world.jobs("build")) == 1
    found = world.conditions()["EngineReady"]
    assert found["reason"] == "EngineQuarantined" and "line 8 | line 9" in found["message"]
    assert found["message"].count("Tokens differ.") == 1
    assert any(note.reason == "EngineQuarantined" and note.warning for note in world.events.notes)


async def test_a_build_that_can_pass_is_tried_again(world):
    world.build_exit = {"failure": {"reason": "StoreUnreachable", "message": "No answer.", "retryable": True}}
    world.apply()
    await world.run(12)
    world.build_exit = None
    await world.run_until(world.is_ready, 90)
    assert world.model()["status"]["builds"] >= 2


async def test_a_changed_checkpoint_is_inspected_again(world):
    world.build_exit = {"failure": {"reason": "CheckpointChanged", "message": "Other bytes.", "retryable": False}}
    world.apply()
    await world.run_until(lambda: bool(world.jobs("build")))
    new = {"digest": "ee" * 32, "tokenizerDigest": "cd" * 32}
    world.inspections["s3://models/tiny/"] = new
    await world.run(8)
    world.build_exit = None
    await world.run_until(world.is_ready, 120)
    assert world.model()["status"]["checkpoint"]["digest"] == "ee" * 32


async def test_a_store_that_denies_is_named_and_mended(world):
    world.store.failure = StoreFailed("the Secret's key is wrong.", "AccessDenied")
    world.apply()
    await world.run(10)
    found = world.conditions()["EngineReady"]
    assert found["reason"] == "AccessDenied" and "store" in found["message"]
    world.store.failure = None
    await world.run_until(world.is_ready)


async def test_a_broken_new_revision_leaves_the_old_one_serving(world):
    world.apply()
    await world.run_until(world.is_ready)
    before = [pod["metadata"]["uid"] for pod in world.pods()]
    gone = {"reason": "CheckpointNotFound", "message": "nothing-here is empty.", "retryable": True}
    world.inspections["s3://models/nothing-here/"] = {"failure": gone}
    engine = world.model()["status"]["engine"]
    world.apply(checkpoint={"uri": "s3://models/nothing-here/"})
    await world.run(40)
    assert "nothing-here" in world.conditions()["EngineReady"]["message"]
    assert [pod["metadata"]["uid"] for pod in world.pods()] == before
    assert world.agents.routes[0].endpoints
    assert world.model()["status"]["engine"] == engine
    # A replica lost meanwhile is replaced: the spec still describes it.
    world.cluster.drop("Pod", world.pods()[0]["metadata"]["name"])
    await world.run_until(lambda: bool(world.agents.routes[0].endpoints), 30)
    world.apply()
    await world.run_until(world.is_ready)


async def test_a_change_of_the_pod_surges_and_drains(world):
    world.apply(replicas=2)
    await world.run_until(lambda: world.model().get("status", {}).get("readyReplicas") == 2)
    old = {pod["metadata"]["uid"] for pod in world.pods()}
    world.agents.in_flight = dict.fromkeys(old, 1)
    world.apply(replicas=2, serving={"maxNewTokens": 7})
    fewest = 2
    for _ in range(30):
        await world.run(1)
        fewest = min(fewest, len(world.agents.routes[0].endpoints))
        assert len([p for p in world.pods() if p["metadata"]["labels"]["hotstart.dev/role"] == "serving"]) <= 3
    assert fewest == 2
    assert old <= {pod["metadata"]["uid"] for pod in world.pods()}, "what runs is not cut off"
    world.agents.in_flight = {}
    await world.run_until(lambda: len(world.pods()) == 2 and world.is_ready())
    assert not old & {pod["metadata"]["uid"] for pod in world.pods()}


async def test_a_drain_ends_at_its_limit(world):
    world.apply(replicas=2)
    await world.run_until(lambda: world.model().get("status", {}).get("readyReplicas") == 2)
    world.agents.in_flight = {pod["metadata"]["uid"]: 1 for pod in world.pods()}
    world.apply(replicas=1)
    await world.run(50)
    assert len(world.pods()) == 2
    await world.run(15)
    assert len(world.pods()) == 1


async def test_three_crashes_stop_the_revision_and_not_the_model(world):
    world.apply()
    await world.run_until(world.is_ready)
    world.agents.failures["*"] = PodFailure(reason="EngineLoadFailed", message="out of memory", retryable=False)
    world.apply(serving={"maxNewTokens": 7})
    await world.run(90)
    degraded = world.conditions()["Degraded"]
    assert (degraded["status"], degraded["reason"]) == ("True", "RevisionStopped")
    assert "out of memory" in degraded["message"]
    made = [write for write in world.cluster.writes if write.startswith("create Pod/")]
    assert len(made) == 4, "one of the first revision, three of the second"
    assert len(world.agents.routes[0].endpoints) == 1
    world.agents.failures.clear()
    world.apply(serving={"maxNewTokens": 8})
    await world.run_until(lambda: world.is_ready() and len(world.pods()) == 1)
    assert world.conditions()["Degraded"]["status"] == "False"


async def test_a_corrupt_engine_is_named_while_the_other_replica_serves(world):
    world.apply()
    await world.run_until(world.is_ready)
    world.agents.failures["*"] = PodFailure(reason="EngineCorrupt", message="model.bin differs", retryable=False)
    world.apply(replicas=2)
    await world.run(10)
    found = world.conditions()["WorkloadReady"]
    assert (found["status"], found["reason"]) == ("False", "EngineCorrupt")
    assert world.model()["status"]["readyReplicas"] == 1


async def test_a_cordoned_node_is_left_before_it_is_drained(world):
    world.cluster.create_now("Node", {"metadata": {"name": "n1"}, "spec": {}})
    world.apply()
    await world.run_until(world.is_ready)
    (pod,) = world.pods()
    world.cluster.change("Pod", pod["metadata"]["name"], {"spec": {"nodeName": "n1"}})
    world.cluster.change("Node", "n1", {"spec": {"unschedulable": True}})
    fewest = 1
    for _ in range(15):
        await world.run(1)
        fewest = min(fewest, len(world.agents.routes[0].endpoints))
    assert fewest == 1
    assert [p["metadata"]["uid"] for p in world.pods()] != [pod["metadata"]["uid"]]
    assert len(world.pods()) == 1


async def test_paused_writes_nothing_but_status(world):
    world.apply()
    await world.run_until(world.is_ready)
    world.apply(management="Paused", replicas=2, serving={"maxNewTokens": 7})
    world.cluster.writes.clear()
    await world.run(10)
    assert {write.split("/")[0] for write in world.cluster.writes} == {"status CompletionModel"}
    assert world.conditions()["Progressing"]["reason"] == "Paused"
    assert world.agents.routes[0].endpoints


async def test_silent_agents_stop_nothing(world):
    world.apply()
    await world.run_until(world.is_ready)
    before = [pod["metadata"]["uid"] for pod in world.pods()]
    world.agents.silent = True
    await world.run(30)
    assert [pod["metadata"]["uid"] for pod in world.pods()] == before
    assert world.model()["status"]["readyReplicas"] == 1, "the kubelet's word stands"


async def test_a_deleted_pod_and_service_come_back(world):
    world.apply()
    await world.run_until(world.is_ready)
    (pod,) = world.pods()
    world.cluster.drop("Pod", pod["metadata"]["name"])
    world.cluster.drop("Service", "m")
    await world.run_until(lambda: world.is_ready() and len(world.pods()) == 1)
    assert world.cluster.objects[("Service", "team", "m")]


async def test_the_plan_says_what_a_change_costs(world):
    world.apply()
    await world.run_until(world.is_ready)
    world.apply(serving={"maxNewTokens": 7})
    await world.run(1)
    assert world.model()["status"]["plan"].startswith("Reuse engine")
    assert "1 pod is replaced" in world.model()["status"]["plan"]
    world.apply(engine={"quantization": "float32"})
    await world.run(1)
    assert "quantization: int8 -> float32" in world.model()["status"]["plan"]
