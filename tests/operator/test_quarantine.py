"""What failed its verification is kept away: engines by their key, nodes by engine; and how people let it go again."""

from __future__ import annotations

import json

import pytest
from hotstart.exchange.messages import PodFailure
from hotstart.operator.core.conditions import MESSAGE_LIMIT
from hotstart.operator.core.errors import Retryable, StoreFailed
from hotstart.operator.core.quarantine import (
    ANNOTATION_LIFT,
    ANNOTATION_NODES,
    MOST_NODES,
    Quarantine,
    find_failed_nodes,
    parse_quarantine,
    quarantined_nodes,
)

from tests.operator.doubles import NAMESPACE
from tests.operator.world import World

WRONG = {"failure": {"reason": "VerificationFailed", "message": "Tokens differ at 9 positions.", "retryable": False}}
REPLAY = PodFailure(reason="VerificationFailed", message="The loaded engine fails its verification.", retryable=False)


@pytest.fixture
def world() -> World:
    return World()


def engine_of(world: World) -> dict:
    (engine,) = world.cluster.all("Engine")
    return engine


def builds(world: World) -> int:
    return sum(write.startswith("create Job/build-") for write in world.cluster.writes)


def annotate(world: World, **annotations: str) -> None:
    names = {"lift": ANNOTATION_LIFT, "nodes": ANNOTATION_NODES}
    body = {"metadata": {"annotations": {names[name]: value for name, value in annotations.items()}}}
    world.cluster.change("Engine", engine_of(world)["metadata"]["name"], body)


async def quarantine(world: World) -> None:
    world.build_exit = WRONG
    world.apply()
    await world.run_until(lambda: world.conditions().get("EngineReady", {}).get("reason") == "EngineQuarantined")


def marker(world: World) -> dict:
    (text,) = [text for key, text in world.store.objects.items() if key.endswith("/quarantine.json")]
    return json.loads(text)


# ------------------------------------------------------------------------------------------------------- engines


async def test_an_engine_that_fails_its_verification_is_never_built_again(world):
    await quarantine(world)
    world.build_exit = None
    await world.run(400)
    assert builds(world) == 1
    status = engine_of(world)["status"]
    ready = next(c for c in status["conditions"] if c["type"] == "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "EngineQuarantined")
    assert "Tokens differ at 9 positions." in ready["message"] and f"{ANNOTATION_LIFT}=1" in ready["message"]
    assert status["lastError"].startswith("Tokens differ")
    assert [note for note in world.events.notes if note.reason == "EngineQuarantined" and note.warning]
    assert marker(world)["number"] == 1
    assert not world.pods()


async def test_how_it_is_lifted_is_said_whole_whatever_the_build_said(world):
    long = {**WRONG["failure"], "message": "Tokens differ. " * 40, "log_tail": ["x" * 190, "y" * 190]}
    world.build_exit = {"failure": long}
    world.apply()
    await world.run_until(lambda: world.conditions().get("EngineReady", {}).get("reason") == "EngineQuarantined")
    name = engine_of(world)["metadata"]["name"]
    lift = f"'kubectl -n {NAMESPACE} annotate engine {name} {ANNOTATION_LIFT}=1 --overwrite'"
    ready = next(c for c in engine_of(world)["status"]["conditions"] if c["type"] == "Ready")
    for found in (ready, world.conditions()["EngineReady"]):
        assert lift in found["message"] and "Tokens differ." in found["message"]
        assert len(found["message"]) < MESSAGE_LIMIT


async def test_nothing_is_under_way_to_a_model_whose_engine_is_quarantined(world):
    await quarantine(world)
    await world.run(2)
    found = world.conditions()["Progressing"]
    assert (found["status"], found["reason"]) == ("False", "EngineQuarantined")
    annotate(world, lift="1")
    world.agents.mute.add("builder")
    world.build_exit = None
    await world.run(5)
    assert world.conditions()["Progressing"]["status"] == "True"


async def test_a_second_run_writes_nothing_about_a_quarantine(world):
    await quarantine(world)
    await world.run(5)
    world.cluster.writes.clear()
    stored = dict(world.store.objects)
    world.restart()
    await world.run(5)
    assert world.cluster.writes == [] and world.store.objects == stored


async def test_its_annotation_allows_one_more_build_and_no_second_one(world):
    await quarantine(world)
    annotate(world, lift="1")
    await world.run_until(lambda: marker(world)["number"] == 2)
    await world.run(400)
    assert builds(world) == 2, "the annotation is spent: it names the quarantine before"
    annotate(world, lift="2")
    world.build_exit = None
    await world.run_until(world.is_ready)
    assert builds(world) == 3
    assert engine_of(world)["status"]["phase"] == "Stored"


@pytest.mark.parametrize("value", ["true", "0", "2", "", "1,2"])
async def test_another_value_lifts_nothing(world, value):
    await quarantine(world)
    annotate(world, lift=value)
    world.build_exit = None
    await world.run(60)
    assert builds(world) == 1


async def test_an_engine_object_that_is_made_anew_does_not_forget(world):
    await quarantine(world)
    world.cluster.drop("Engine", engine_of(world)["metadata"]["name"])
    world.build_exit = None
    await world.run(60)
    assert builds(world) == 1
    assert world.conditions()["EngineReady"]["reason"] == "EngineQuarantined"
    annotate(world, lift="1")
    await world.run_until(world.is_ready)


async def test_a_deleted_job_does_not_end_a_quarantine(world):
    await quarantine(world)
    for job in world.jobs("build"):
        world.cluster.drop("Job", job)
    world.build_exit = None
    await world.run(60)
    assert world.jobs("build") == [] and builds(world) == 1


async def test_a_store_that_is_away_holds_the_marker_up_and_loses_nothing(world):
    world.build_exit = WRONG
    put = world.store.put_quarantine

    async def refuse(prefix, text):
        raise StoreFailed("no answer", "StoreUnreachable")

    world.store.put_quarantine = refuse
    world.apply()
    await world.run(12)
    assert builds(world) == 1 and world.operator.failures, "tried, and to be tried again"
    assert engine_of(world)["status"]["lastError"].startswith("Tokens differ"), "said, though not yet marked"
    world.store.put_quarantine = put
    await world.run_until(lambda: [key for key in world.store.objects if key.endswith("/quarantine.json")])
    assert builds(world) == 1
    assert world.conditions()["EngineReady"]["reason"] == "EngineQuarantined"
    assert marker(world)["number"] == 1


async def test_a_build_that_can_pass_is_no_quarantine(world):
    world.build_exit = {"failure": {"reason": "VerificationFailed", "message": "Disk.", "retryable": True}}
    world.apply()
    await world.run(20)
    assert not [key for key in world.store.objects if key.endswith("/quarantine.json")]


async def test_an_engine_in_the_store_wins_over_an_old_marker(world):
    world.apply()
    await world.run_until(world.is_ready)
    (key,) = [key for key in world.store.objects if key.endswith("/manifest.json")]
    prefix = key.removesuffix("manifest.json")
    world.store.objects[f"{prefix}quarantine.json"] = Quarantine(1, "", "old", 0.0).to_json()
    world.restart()
    await world.run(300)
    assert world.is_ready()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"number": "x"}'])
def test_a_marker_that_cannot_be_read_is_a_quarantine(text):
    found = parse_quarantine(text)
    assert found is not None and found.number == 1 and "cannot be read" in found.message


def test_a_marker_is_read_as_it_was_written():
    made = Quarantine(3, "uid-7", "why", 12.5)
    assert parse_quarantine(made.to_json()) == made
    assert parse_quarantine(None) is None


# --------------------------------------------------------------------------------------------------------- nodes


async def start_on(world: World, node: str) -> str:
    """A pod on that node, which has not loaded its engine yet; its name."""
    world.apply()
    await world.run_until(lambda: len(world.pods()) == 1)
    name = world.pods()[0]["metadata"]["name"]
    world.cluster.change("Pod", name, {"spec": {"nodeName": node}})
    world.agents.failures["*"] = REPLAY
    return name


def affinity(pod: dict) -> list[str]:
    required = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (term,) = required["nodeSelectorTerms"]
    for field in term["matchFields"]:
        assert (field["key"], field["operator"]) == ("metadata.name", "NotIn")
    return [name for field in term["matchFields"] for name in field["values"]]


async def test_a_load_that_fails_keeps_the_engine_off_that_node(world):
    failed = await start_on(world, "n1")
    uid = world.pods()[0]["metadata"]["uid"]
    await world.run_until(lambda: "affinity" in world.pods()[0]["spec"] if world.pods() else False)
    world.agents.failures.clear()
    assert affinity(world.pods()[0]) == ["n1"]
    assert world.pods()[0]["metadata"]["uid"] != uid
    order = [write for write in world.cluster.writes if write.startswith(("patch Engine/", f"delete Pod/{failed}"))]
    assert order[0].startswith("patch Engine/"), "what the pod tells is kept before the pod goes"
    await world.run_until(world.is_ready)
    degraded = world.conditions()["Degraded"]
    assert (degraded["status"], degraded["reason"]) == ("True", "EngineQuarantined")
    assert "n1" in degraded["message"] and ANNOTATION_NODES in degraded["message"]
    told = [note for note in world.events.notes if note.reason == "VerificationFailed"]
    assert told and all(note.warning for note in told) and "Node n1 is quarantined" in told[0].message
    engine = next(c for c in engine_of(world)["status"]["conditions"] if c["type"] == "Degraded")
    assert engine["status"] == "True" and "n1" in engine["message"]


async def test_another_operator_remembers_the_node_until_it_is_taken_out(world):
    await start_on(world, "n1")
    await world.run_until(lambda: quarantined(world) == ["n1"])
    world.agents.failures.clear()
    world.restart()
    await world.run_until(world.is_ready)
    assert affinity(world.pods()[0]) == ["n1"]
    annotate(world, nodes="")
    world.cluster.drop("Pod", world.pods()[0]["metadata"]["name"])
    await world.run_until(lambda: world.is_ready() and len(world.pods()) == 1)
    assert "affinity" not in world.pods()[0]["spec"]
    assert world.conditions()["Degraded"]["status"] == "False"


def quarantined(world: World) -> list[str]:
    annotations = engine_of(world)["metadata"].get("annotations", {})
    return [name for name in annotations.get(ANNOTATION_NODES, "").split(",") if name]


async def test_an_engine_that_fails_everywhere_stops_its_revision(world):
    await start_on(world, "n0")
    for _ in range(90):
        for pod in world.pods():
            if not pod["spec"].get("nodeName"):
                node = f"n{len(quarantined(world))}"
                world.cluster.change("Pod", pod["metadata"]["name"], {"spec": {"nodeName": node}})
        await world.run(1)
    assert quarantined(world) == ["n0", "n1", "n2"], "three failures, and no more pods for five minutes"
    assert world.conditions()["Degraded"]["reason"] == "RevisionStopped"
    assert "fails its verification" in world.conditions()["Degraded"]["message"]


async def test_a_write_that_fails_loses_no_evidence(world):
    failed = await start_on(world, "n1")
    real = world.cluster.patch

    async def refuse(kind, namespace, name, body):
        if kind == "Engine":
            raise Retryable("no answer")
        return await real(kind, namespace, name, body)

    world.cluster.patch = refuse
    await world.run(60)
    assert world.operator.failures, "tried, and to be tried again"
    assert [pod["metadata"]["name"] for pod in world.pods()] == [failed]
    world.cluster.patch = real
    await world.run_until(lambda: quarantined(world) == ["n1"])


def test_only_final_failures_of_this_engine_count_and_no_more_than_a_few():
    from types import SimpleNamespace as Facts

    def pod(node: str, failure: PodFailure | None, engine: str = "e") -> Facts:
        return Facts(node=node, engine=engine, report=None if failure is None else Facts(failure=failure))

    engine = Facts(metadata=Facts(name="e", namespace=NAMESPACE, annotations={ANNOTATION_NODES: " b, a,,b"}))
    assert quarantined_nodes(engine) == ("a", "b")
    passing = PodFailure(reason="VerificationFailed", message="x", retryable=True)
    other = PodFailure(reason="EngineLoadFailed", message="x", retryable=False)
    pods = [pod("a", REPLAY), pod("c", passing), pod("d", other), pod("f", REPLAY, "another"), pod("", REPLAY)]
    assert find_failed_nodes(engine, [*pods, pod("g", None)]) == {}
    many = [pod(f"n{number:02}", REPLAY) for number in range(40)]
    assert list(find_failed_nodes(engine, many)) == [f"n{number:02}" for number in range(MOST_NODES - 2)]
