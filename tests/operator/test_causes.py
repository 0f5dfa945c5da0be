"""Whatever holds a model up is named in a condition, with what to do about it, and its events are told."""

from __future__ import annotations

import pytest
from hotstart.exchange.messages import BuildPhase
from hotstart.operator.core.errors import Conflict, Forbidden, Retryable

from tests.operator.doubles import stamp
from tests.operator.world import World


@pytest.fixture
def world() -> World:
    return World()


def refuse(world: World, error: Exception, *, kind: str, name: str = "") -> None:
    """Creates of that kind, whose name begins so, fail."""
    create = world.cluster.create

    async def refuse(body):
        if body["kind"] == kind and body["metadata"]["name"].startswith(name):
            raise error
        return await create(body)

    world.cluster.create = refuse


async def test_an_agent_that_cannot_be_reached_is_named(world):
    world.agents.mute = {"pod"}
    world.apply()
    await world.run_until(lambda: bool(world.pods()))
    await world.run(16)
    found = world.conditions()["WorkloadReady"]
    assert found["reason"] == "AgentUnreachable"
    assert world.pods()[0]["metadata"]["name"] in found["message"] and "9700" in found["message"]
    world.agents.mute = set()
    await world.run_until(world.is_ready)


async def test_an_agent_that_falls_silent_while_it_loads_is_named_and_so_is_its_return(world):
    world.apply()
    await world.run_until(world.is_ready)
    world.agents.mute = {"pod"}
    world.apply(replicas=2)
    await world.run_until(lambda: world.conditions()["WorkloadReady"]["reason"] == "AgentUnreachable", 20)
    world.agents.mute = set()
    await world.run(2)
    assert world.conditions()["WorkloadReady"]["reason"] != "AgentUnreachable"


async def test_a_builder_that_cannot_be_reached_is_named(world):
    world.agents.mute = {"builder"}
    world.apply()
    await world.run_until(lambda: bool(world.jobs("build")))
    await world.run(20)
    found = world.conditions()["EngineReady"]
    assert found["reason"] == "AgentUnreachable" and "9700" in found["message"]
    world.agents.mute = set()
    await world.run_until(world.is_ready)


async def test_a_builder_that_was_heard_may_be_busy_for_a_minute(world):
    ask = world.agents.ask_builder

    async def building(address, uid, request):
        report = await ask(address, uid, request)
        return report and report.model_copy(update={"phase": BuildPhase.BUILDING, "manifest": ""})

    world.agents.ask_builder = building
    world.apply()
    await world.run_until(lambda: world.conditions().get("EngineReady", {}).get("message", "").endswith("Building."))
    world.agents.mute = {"builder"}
    await world.run(50)
    assert world.conditions()["EngineReady"]["reason"] == "EngineBuilding"
    await world.run_until(lambda: world.conditions()["EngineReady"]["reason"] == "AgentUnreachable", 20)


async def test_a_claim_that_does_not_exist_is_named_with_its_remedy(world):
    said = '0/1 nodes are available: persistentvolumeclaim "models" not found. not found'
    unplaced = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": said}
    world._run_inspect = lambda pod: world._set(pod, {"phase": "Pending", "conditions": [unplaced]})
    world.apply(checkpoint={"uri": "pvc://models/code/"})
    await world.run(10)
    found = world.conditions()["EngineReady"]
    assert found["reason"] == "Unschedulable" and '"models" not found' in found["message"]
    assert "Create that claim" in found["message"] and "lower the request" not in found["message"]


async def test_a_build_that_runs_into_its_time_limit_says_so_and_is_tried_again(world):
    world.agents.mute = {"builder"}
    world.apply()
    await world.run_until(lambda: bool(world.jobs("build")))
    await world.run(2)
    late = {"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "Job was active too long"}
    done = {"conditions": [{**late, "lastTransitionTime": stamp(world.clock.now())}]}
    world.cluster.change("Job", world.jobs("build")[0], {"status": done})
    await world.run(2)
    assert world.conditions()["EngineReady"]["reason"] == "BuildTimedOut"
    world.agents.mute = set()
    await world.run_until(world.is_ready, 60)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Forbidden("exceeded quota: count/jobs.batch", "QuotaExceeded"), "QuotaExceeded"),
        (Retryable('POST jobs: 500: failed calling webhook "validate"'), "BuildFailed"),
    ],
)
async def test_a_build_that_the_api_server_does_not_take_is_named(world, error, reason):
    refuse(world, error, kind="Job", name="build-")
    world.apply()
    await world.run(10)
    found = world.conditions()["EngineReady"]
    assert found["reason"] == reason and str(error) in found["message"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Forbidden("denied by policy", "AdmissionDenied"), "AdmissionDenied"),
        (Retryable('POST pods: 500: failed calling webhook "validate"'), "PodCreateFailed"),
    ],
)
async def test_a_pod_that_the_api_server_does_not_take_is_named(world, error, reason):
    refuse(world, error, kind="Pod", name="m-")
    world.apply()
    await world.run(15)
    found = world.conditions()["WorkloadReady"]
    assert found["reason"] == reason and str(error) in found["message"]


async def test_a_pod_of_a_new_revision_that_is_not_taken_is_named_though_the_old_ones_serve(world):
    world.apply()
    await world.run_until(world.is_ready)
    refuse(world, Forbidden("denied by policy", "AdmissionDenied"), kind="Pod", name="m-")
    world.apply(serving={"maxNewTokens": 7})
    await world.run(5)
    assert world.conditions()["WorkloadReady"]["status"] == "True"
    found = world.conditions()["Degraded"]
    assert (found["status"], found["reason"]) == ("True", "AdmissionDenied") and "denied by policy" in found["message"]


@pytest.mark.parametrize("error", [Conflict("changed"), Retryable("500")])
async def test_what_was_written_before_a_write_that_failed_is_told(world, error):
    world.apply(replicas=2)
    refuse(world, error, kind="Pod", name="m-")
    await world.run_until(lambda: any(w.startswith("create Job/build-") for w in world.cluster.writes))
    world.cluster.create, made = type(world.cluster).create.__get__(world.cluster), []
    create = world.cluster.create

    async def second_fails(body):
        if body["kind"] == "Pod":
            made.append(body["metadata"]["name"])
            if len(made) == 2:
                raise error
        return await create(body)

    world.cluster.create = second_fails
    await world.run_until(lambda: len(world.pods()) == 2)
    told = [note.message for note in world.events.notes if note.reason == "PodCreated"]
    assert all(any(pod["metadata"]["name"] in message for message in told) for pod in world.pods())
