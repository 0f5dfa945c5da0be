"""From a spec to a served model, and what happens when something on the way goes wrong; all of it in memory."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hotstart.engines.builder.termination import make_failure, make_failure_message
from hotstart.engines.errors import Reason as EngineReason
from hotstart.engines.errors import Terminal
from hotstart.engines.profile import LoadPoint, LonePoint, Profile
from hotstart.exchange.messages import BuildPhase, PodFailure
from hotstart.exchange.names import LABEL_ENGINE
from hotstart.operator.core.errors import StoreFailed

from tests.operator import doubles
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
    assert (route.model, route.prompt_format) == ("team/m", "plain")
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
    assert "AWS_ACCESS_KEY_ID" in found["message"] and "HF_TOKEN for hf://" in found["message"]
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


async def test_a_build_that_cannot_pass_is_not_tried_again_once_its_job_is_taken_away(world):
    said = {"reason": "UnsupportedRecipe", "message": "No such layer.", "retryable": False}
    world.build_exit = {"failure": said}
    world.apply()
    await world.run(20)
    for restarted in (False, True):
        for job in world.jobs("build"):  # as Kubernetes does after ttlSecondsAfterFinished
            world.cluster.drop("Job", job)
        if restarted:
            world.restart()
        await world.run(20)
    assert sum(write.startswith("create Job/build-") for write in world.cluster.writes) == 1
    found = world.conditions()["EngineReady"]
    assert found["reason"] == "UnsupportedRecipe" and "No such layer." in found["message"]
    assert world.conditions()["Progressing"]["status"] == "False"
    (engine,) = world.cluster.all("Engine")
    world.build_exit = None
    world.cluster.drop("Engine", engine["metadata"]["name"])  # the lever for another try
    await world.run_until(world.is_ready)


async def test_a_checkpoint_that_a_build_found_corrupt_is_taken_up_once_it_is_mended(world):
    said = {"reason": "CheckpointCorrupt", "message": "weights are cut short.", "retryable": False}
    world.build_exit = {"failure": said}
    world.apply()
    await world.run(100)
    assert 2 <= sum(write.startswith("create Job/build-") for write in world.cluster.writes) <= 4, "rarely"
    assert world.conditions()["EngineReady"]["reason"] == "CheckpointCorrupt"
    world.build_exit = {"failure": {"reason": "CheckpointChanged", "message": "Other bytes.", "retryable": False}}
    world.inspections["s3://models/tiny/"] = {"digest": "ee" * 32, "tokenizerDigest": "cd" * 32}
    await world.run_until(lambda: world.model()["status"]["checkpoint"]["digest"] == "ee" * 32, 320)
    world.build_exit = None
    await world.run_until(world.is_ready, 120)


async def test_a_build_that_no_model_wants_any_longer_is_ended(world):
    ask, cancelled = world.agents.ask_builder, []

    async def building(address, uid, request):
        if request.cancel:
            cancelled.append(uid)
            return None
        report = await ask(address, uid, request)
        return report.model_copy(update={"phase": BuildPhase.BUILDING, "manifest": ""})

    world.agents.ask_builder = building
    world.apply()
    await world.run_until(lambda: bool(world.jobs("build")))
    world.apply(engine={"quantization": "float32"})
    await world.run(30)
    assert len(world.jobs("build")) == 2, "it may be wanted again in a moment"
    pods = [pod for pod in world.operator.observed.all("Pod") if "build-" in pod["metadata"]["name"]]
    await world.run_until(lambda: len(world.jobs("build")) == 1, 60)
    assert len(world.cluster.all("Engine")) == 2
    ended = {**pods[0], "metadata": {**pods[0]["metadata"], "deletionTimestamp": "2027-01-15T08:00:00Z"}}
    await world.operator.exchange.builds.serve(ended)  # while the kubelet ends it
    assert cancelled == [ended["metadata"]["uid"]]
    world.agents.ask_builder = ask
    world.apply()
    await world.run_until(world.is_ready)


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


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_store_that_is_away_takes_nothing_from_an_engine_that_stands(world, monkeypatch, restarted):
    monkeypatch.setattr(doubles, "make_manifest", measured(doubles.make_manifest))
    world.apply(scaling={"mode": "SLO", "minReplicas": 1, "maxReplicas": 10}, serving={"interThreads": 4})
    await world.run_until(world.is_ready)
    await world.run(2)
    stored = world.cluster.all("Engine")[0]["status"]
    assert stored["manifestDigest"] and stored["profile"] and stored["builtAt"] and stored["sizeBytes"]
    cap = world.agents.routes[0].endpoints[0].cap
    world.store.failure = StoreFailed("no answer", "StoreUnreachable")
    if restarted:
        world.restart()
    await world.run_until(lambda: engine_conditions(world)["Degraded"]["status"] == "True", 320)
    found = engine_conditions(world)["Degraded"]
    assert found["reason"] == "StoreUnreachable" and "no answer" in found["message"]
    await world.run(20)
    away = world.cluster.all("Engine")[0]["status"]
    assert {**away, "conditions": []} == {**stored, "conditions": []}
    assert world.is_ready() and world.model()["spec"]["replicas"] == 1
    assert world.agents.routes[0].endpoints[0].cap == cap == 4
    world.store.failure = None
    await world.run_until(lambda: engine_conditions(world)["Degraded"]["status"] == "False", 10)


async def test_a_lost_engine_s_measurements_hold_for_the_replicas_that_serve_it(world, monkeypatch):
    monkeypatch.setattr(doubles, "make_manifest", measured(doubles.make_manifest))
    world.apply(serving={"interThreads": 4})
    await world.run_until(world.is_ready)
    await world.run(2)
    world.store.objects.clear()
    world.build_exit = {"failure": {"reason": "BuildFailed", "message": "No.", "retryable": True}}
    await world.run_until(lambda: engine_conditions(world)["Ready"]["status"] == "False", 320)
    status = world.cluster.all("Engine")[0]["status"]
    assert not status["manifestDigest"]
    assert status["profile"] and status["builtAt"] and status["sizeBytes"]
    assert world.agents.routes[0].endpoints[0].cap == 4


def measured(make):
    """Manifests with a calibration: four requests at once hold the SLO."""
    load = tuple(LoadPoint(count, 50.0 + count, 600.0 * count) for count in (1, 2, 4))
    profile = Profile(960, 32, 1e4, (LonePoint(960, 32, 50.0),), load, 0.0, 0.05, 1.0, cpus=4.0, inter_threads=4)
    return lambda engine, **words: replace(make(engine, **words), profile=profile)


def engine_conditions(world) -> dict[str, dict]:
    (engine,) = world.cluster.all("Engine")
    return {c["type"]: c for c in engine["status"]["conditions"]}


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


async def test_a_revision_that_the_spec_describes_no_longer_is_kept_up_until_the_next_one_is_ready(world):
    for node in ("n1", "n2"):
        world.cluster.create_now("Node", {"metadata": {"name": node}, "spec": {}})
    world.apply(replicas=2)
    await world.run_until(lambda: world.model().get("status", {}).get("readyReplicas") == 2)
    for node, pod in zip(("n1", "n2"), world.pods(), strict=True):
        world.cluster.change("Pod", pod["metadata"]["name"], {"spec": {"nodeName": node}})
    (first, second), revision = world.pods(), world.model()["status"]["revision"]
    gone = {"reason": "CheckpointNotFound", "message": "nothing-here is empty.", "retryable": True}
    world.inspections["s3://models/nothing-here/"] = {"failure": gone}
    world.apply(checkpoint={"uri": "s3://models/nothing-here/"}, serving={"maxNewTokens": 7}, replicas=2)
    await world.run(3)
    world.cluster.drop("Pod", first["metadata"]["name"])
    world.cluster.change("Node", "n2", {"spec": {"unschedulable": True}})
    uids = {first["metadata"]["uid"], second["metadata"]["uid"]}
    await world.run_until(
        lambda: (
            len(world.pods()) == 2
            and len(world.agents.routes[0].endpoints) == 2
            and not uids & {pod["metadata"]["uid"] for pod in world.pods()}
        )
    )
    for pod in world.pods():
        assert pod["metadata"]["labels"]["hotstart.dev/revision"] == revision
        assert json.loads(pod["metadata"]["annotations"]["hotstart.dev/assignment"])["serving"]["max_new_tokens"] != 7
        assert "nodeName" not in pod["spec"]
    world.inspections.clear()
    await world.run_until(world.is_ready, 60)
    await world.run_until(lambda: len(world.pods()) == 2, 60)
    assert world.model()["status"]["revision"] != revision


@pytest.mark.parametrize(("serving", "crashing"), [("int8", "float32"), ("float32", "int8")])
async def test_of_several_revisions_the_one_that_serves_is_kept_at_its_number(world, serving, crashing):
    def pods_of(name: str) -> int:
        return sum(pod["metadata"]["labels"][LABEL_ENGINE] == name for pod in world.pods())

    load = PodFailure(reason="EngineLoadFailed", message="bad", retryable=False)
    world.apply(replicas=2, engine={"quantization": serving})
    await world.run_until(world.is_ready)
    (engine,) = (engine["metadata"]["name"] for engine in world.cluster.all("Engine"))
    world.agents.failures["*"] = load
    world.apply(replicas=2, engine={"quantization": crashing})
    await world.run_until(lambda: world.conditions()["Degraded"]["status"] == "True", 90)
    (key,) = (e["spec"]["key"] for e in world.cluster.all("Engine") if e["metadata"]["name"] != engine)
    world.agents.failures = {key: load}
    world.agents.mute.add("builder")
    world.apply(replicas=2, engine={"quantization": "int8_float32"})
    await world.run(20)
    lost = next(pod for pod in world.pods() if pod["metadata"]["labels"][LABEL_ENGINE] == engine)
    world.cluster.drop("Pod", lost["metadata"]["name"])
    await world.run(30)
    assert (pods_of(engine), len(world.agents.routes[0].endpoints)) == (2, 2)


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
    await world.run_until(lambda: world.conditions()["Progressing"]["reason"] == "RollingOut")
    assert "off a cordoned node" in world.conditions()["Progressing"]["message"]
    fewest = 1
    for _ in range(15):
        await world.run(1)
        fewest = min(fewest, len(world.agents.routes[0].endpoints))
    assert fewest == 1
    assert [p["metadata"]["uid"] for p in world.pods()] != [pod["metadata"]["uid"]]
    assert len(world.pods()) == 1
    assert world.conditions()["Progressing"]["reason"] == "UpToDate"


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
