"""Tokenizers and engines: another tokenizer of the same weights is served, and nothing is built anew for it."""

from __future__ import annotations

import json

import pytest
from hotstart.engines.manifest import bundle_prefix

from tests.operator.doubles import NAMESPACE
from tests.operator.world import World, digest

URI = "s3://models/tiny/"
NEW = "ef" * 32


def found(uri: str, tokenizer: str) -> dict:
    return {"digest": digest(URI), "tokenizerDigest": tokenizer, "architecture": "LlamaForCausalLM", "files": 2}


def assignments(world: World, name: str = "m") -> list[dict]:
    return [json.loads(pod["metadata"]["annotations"]["hotstart.dev/assignment"]) for pod in world.pods(name)]


def builds(world: World) -> list[str]:
    made = [write.removeprefix("create Job/") for write in world.cluster.writes if write.startswith("create Job/")]
    return [name for name in made if not name.startswith("m-inspect") and "-inspect-" not in name]


@pytest.fixture
async def world() -> World:
    """One model that is served with the tokenizer that its engine was built with."""
    world = World()
    world.apply()
    await world.run_until(world.is_ready)
    return world


def change_tokenizer(world: World) -> None:
    world.inspections[URI] = found(URI, NEW)
    world.apply(checkpoint={"uri": URI, "revision": "2"})


async def test_a_changed_tokenizer_is_served_and_the_engine_is_not_built_again(world: World) -> None:
    (before,) = [pod["metadata"]["uid"] for pod in world.pods()]
    change_tokenizer(world)
    await world.run_until(lambda: world.is_ready() and [p["metadata"]["uid"] for p in world.pods()] != [before], 60)
    await world.run_until(lambda: len(world.pods()) == 1)
    (served,) = assignments(world)
    assert served["tokenizer_digest"] == NEW
    assert [name.partition("-")[0] for name in builds(world)] == ["build", "bundle"]
    uid = world.pods()[0]["metadata"]["uid"]
    files = next(request.files for who, request in world.agents.pod_requests if who == uid and request.files)
    urls = {file.path: file.url for file in files}
    prefix = bundle_prefix(world.operator.memory.namespaces[NAMESPACE], served["engine_key"], NEW)
    assert urls["tokenizer.json"] == f"http://store/{prefix}tokenizer.json"
    assert "bundles" not in urls["model.bin"], "the engine's own files come from the engine"
    world.cluster.writes.clear()
    await world.run(10)
    assert world.cluster.writes == []


async def test_the_old_tokenizer_is_served_until_the_new_one_stands(world: World) -> None:
    world.agents.mute.add("builder")
    (pod,) = world.pods()
    change_tokenizer(world)
    await world.run_until(lambda: any(name.startswith("bundle-") for name in builds(world)))
    await world.run(10)
    condition = world.conditions()["EngineReady"]
    assert (condition["status"], condition["reason"]) == ("False", "EngineBuilding")
    assert "tokenizer" in condition["message"]
    assert "another tokenizer; then 1 pod is replaced" in world.model()["status"]["plan"]
    assert world.agents.routes[0].endpoints
    world.cluster.drop("Pod", pod["metadata"]["name"])  # lost meanwhile: made again as it was
    await world.run_until(lambda: bool(world.agents.routes[0].endpoints), 30)
    assert assignments(world)[0]["tokenizer_digest"] == ""
    world.agents.mute.discard("builder")
    await world.run_until(lambda: world.is_ready() and assignments(world)[0]["tokenizer_digest"] == NEW, 60)


async def test_going_back_to_the_first_tokenizer_makes_nothing(world: World) -> None:
    change_tokenizer(world)
    await world.run_until(lambda: world.is_ready() and assignments(world)[-1]["tokenizer_digest"] == NEW, 60)
    made = builds(world)
    del world.inspections[URI]
    world.apply(checkpoint={"uri": URI, "revision": "3"})
    await world.run_until(lambda: world.is_ready() and [a["tokenizer_digest"] for a in assignments(world)] == [""], 60)
    assert builds(world) == made


async def test_two_models_with_their_own_tokenizers_share_one_engine(world: World) -> None:
    world.inspections["s3://models/other/"] = found(URI, NEW)
    world.apply("other", checkpoint={"uri": "s3://models/other/"})
    await world.run_until(lambda: world.is_ready("other") and world.is_ready("m"), 60)
    (first,), (second,) = assignments(world), assignments(world, "other")
    assert first["engine_key"] == second["engine_key"]
    assert (first["tokenizer_digest"], second["tokenizer_digest"]) == ("", NEW)
    assert len(world.cluster.all("Engine")) == 1


async def test_an_engine_that_was_never_built_is_built_with_the_tokenizer_that_stands_now() -> None:
    """The Engine never changes, and names the tokenizer of its first attempt."""
    world = World()
    changed = {"reason": "CheckpointChanged", "message": "The tokenizer is another.", "retryable": False}
    world.build_exit = {"failure": changed}
    world.apply()
    await world.run_until(lambda: bool(world.jobs("build")))
    world.inspections[URI] = found(URI, NEW)
    await world.run(8)
    world.build_exit = None
    await world.run_until(world.is_ready, 120)
    (engine,) = world.cluster.all("Engine")
    assert engine["spec"]["tokenizerDigest"] != NEW
    assert engine["status"]["tokenizerDigest"] == NEW
    assert assignments(world)[0]["tokenizer_digest"] == ""
    assert not [name for name in builds(world) if name.startswith("bundle-")]


async def test_a_tokenizer_that_cannot_be_served_is_named_and_the_old_one_serves_on(world: World) -> None:
    failure = {"reason": "VerificationFailed", "message": "No position is clear enough.", "retryable": False}
    world.build_exit = {"failure": failure}
    change_tokenizer(world)
    await world.run(60)
    condition = world.conditions()["EngineReady"]
    assert condition["reason"] == "VerificationFailed" and "No position" in condition["message"]
    assert len([name for name in builds(world) if name.startswith("bundle-")]) == 1, "it is not tried for ever"
    assert world.agents.routes[0].endpoints
    (engine,) = world.cluster.all("Engine")
    ready = next(c for c in engine["status"]["conditions"] if c["type"] == "Ready")
    assert ready["status"] == "True", "the engine is as good as before"


async def test_a_failure_that_can_pass_is_tried_again_and_leaves_no_heap_of_jobs(world: World) -> None:
    world.build_exit = {"failure": {"reason": "StoreUnreachable", "message": "No answer.", "retryable": True}}
    change_tokenizer(world)
    await world.run(150)
    assert len([name for name in builds(world) if name.startswith("bundle-")]) > 3
    assert len([name for name in world.jobs("build") if name.startswith("bundle-")]) <= 3
    assert "No answer" in world.conditions()["EngineReady"]["message"]
    world.build_exit = None
    await world.run_until(lambda: world.is_ready() and assignments(world)[-1]["tokenizer_digest"] == NEW, 90)
    await world.run(5)
    assert not [name for name in world.jobs("build") if name.startswith("bundle-") and name != builds(world)[-1]]
