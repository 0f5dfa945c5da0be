"""A pod that Kubernetes takes off its node is no fault of what ran in it: no second build, and no crash."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
from hotstart.engines.manifest import engine_prefix
from hotstart.exchange.messages import BuildPhase, BuildReport, BuiltFile
from hotstart.operator.api import Engine

from tests.operator.doubles import NAMESPACE, make_manifest, stamp
from tests.operator.world import World

SHUTDOWN = "Pod was terminated in response to imminent node shutdown."


@pytest.fixture
def world() -> World:
    return World()


def disrupt(world: World, name: str, container: str, **said: str) -> None:
    """The pod's status as the kubelet leaves it, and nothing moves it any longer."""
    at = stamp(world.clock.now())
    target = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet", "lastTransitionTime": at}
    ended = {"exitCode": 143, "reason": "Error", "finishedAt": at}
    statuses = [{"name": container, "restartCount": 0, "state": {"terminated": ended}}]
    status = {"phase": "Failed", "conditions": [target], "containerStatuses": statuses, **said}
    world.cluster.change("Pod", name, {"status": None})
    uid = world.cluster.change("Pod", name, {"status": status})["metadata"]["uid"]
    move = world._move_pod
    world._move_pod = lambda pod: None if pod["metadata"]["uid"] == uid else move(pod)


async def start_build(world: World) -> str:
    """A build that is under way and has nothing to upload yet; its Job's name, which no world ends."""
    world.agents.mute.add("builder")
    world.apply()
    await world.run_until(lambda: bool(world.jobs("build")))
    await world.run(2)
    (job,) = world.jobs("build")
    move = world._move_job
    world._move_job = lambda obj: None if obj["metadata"]["name"] == job else move(obj)
    return job


def start_again(world: World, job: str) -> None:
    """The successor that the Job's controller makes in the same Job, since its policy ignores disruptions."""
    obj = world.cluster.objects[("Job", NAMESPACE, job)]
    pod = copy.deepcopy(obj["spec"]["template"])
    owner = {"kind": "Job", "name": job, "uid": obj["metadata"]["uid"], "controller": True}
    pod["metadata"] |= {"name": f"{job}-x2", "ownerReferences": [owner]}
    world.cluster.create_now("Pod", pod)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"reason": "Terminated", "message": SHUTDOWN}, "Pending"),
        ({"reason": "Evicted", "message": "The node was low on resource: memory."}, "OutOfMemory"),
        ({"reason": "Evicted", "message": "The node was low on resource: pids."}, "Pending"),
    ],
)
async def test_a_build_that_is_taken_off_its_node_has_one_successor(world, said, reason):
    job = await start_build(world)
    disrupt(world, f"{job}-x1", "builder", **said)
    await world.run(10)
    found = world.conditions()["EngineReady"]
    assert found["reason"] == reason
    assert said["message"] in found["message"] and "Kubernetes starts it again" in found["message"]
    assert world.jobs("build") == [job]
    start_again(world, job)
    world.agents.mute.clear()
    await world.run_until(world.is_ready)
    assert sum(write.startswith("create Job/build-") for write in world.cluster.writes) == 1


async def test_a_build_that_is_taken_off_its_node_and_whose_job_failed_all_the_same_is_tried_again(world):
    job = await start_build(world)
    disrupt(world, f"{job}-x1", "builder", reason="Terminated", message=SHUTDOWN)
    failed = {"type": "Failed", "status": "True", "lastTransitionTime": stamp(world.clock.now())}
    world.cluster.change("Job", job, {"status": {"conditions": [failed]}})
    world.agents.mute.clear()
    await world.run_until(world.is_ready)


async def test_a_second_builder_overwrites_nothing_of_an_engine_that_stands(world):
    world.apply()
    await world.run_until(world.is_ready)
    (raw,) = world.cluster.all("Engine")
    engine, builds = Engine.from_api(raw), world.operator.exchange.builds
    prefix = engine_prefix(world.operator.memory.namespaces[NAMESPACE], engine.spec.key)
    upload = await world.store.create_upload(f"{prefix}model.bin")
    standing = dict(world.store.objects)
    other = make_manifest(engine)
    other = replace(other, files=(replace(other.files[0], size=12, sha256="ee" * 32),))
    file = BuiltFile(path="model.bin", size=12, sha256="ee" * 32, upload_id=upload, etags=("e",))
    report = BuildReport(
        pod_uid="p2",
        engine_key=engine.spec.key,
        phase=BuildPhase.UPLOADED,
        files=(file,),
        manifest=other.to_json(),
    )
    answer = await builds._answer(NAMESPACE, raw, report)
    assert answer is not None and answer.cancel and not answer.published
    assert world.store.objects == standing


async def test_a_node_that_shuts_down_stops_no_revision(world):
    world.apply(replicas=3)
    await world.run_until(lambda: world.is_ready() and len(world.pods()) == 3)
    for pod in world.pods():
        disrupt(world, pod["metadata"]["name"], "triton", reason="Terminated", message=SHUTDOWN)
    await world.run(2)
    assert world.conditions()["Degraded"]["status"] == "False"
    assert any(SHUTDOWN in note.message for note in world.events.notes)
    await world.run_until(world.is_ready, 20)
