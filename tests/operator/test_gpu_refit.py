"""Refit in the operator: which engine's plan is taken, and what the builder is told of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hotstart.engines.key import engine_name, key_inputs, make_key
from hotstart.engines.manifest import Manifest, ManifestFile, engine_prefix
from hotstart.engines.recipe import REFIT, EngineRecipe
from hotstart.exchange.messages import BuildPhase, BuildReport
from hotstart.operator.api import Engine
from hotstart.operator.core.refit import find_base

from tests.operator.test_kept import RECIPE, make_engine
from tests.operator.world import Operator, World

REFITTED = replace(RECIPE, quantization="none", rebuild=REFIT)
STORED = {"type": "Ready", "status": "True", "reason": "EngineStored", "lastTransitionTime": "2026-01-01T00:00:00Z"}


def engine_of(digest: str, recipe: EngineRecipe = REFITTED, *, built: str = "2026-01-01T00:00:00Z", ready=True) -> dict:
    raw = make_engine(recipe)
    key = make_key(key_inputs(digest, recipe))
    raw["spec"] |= {"key": key, "checkpointDigest": digest}
    raw["metadata"] |= {"name": engine_name(key), "uid": f"uid-{key[:8]}", "resourceVersion": "1"}
    status = {"conditions": [STORED], "manifestDigest": "ef" * 32, "builtAt": built}
    return {**raw, "kind": "Engine", "status": status if ready else {}}


OLD, NEWER, WANTED = "0a" * 32, "0b" * 32, "0c" * 32
CANDIDATES = {
    "nothing stands": ([], None),
    "one stands": ([engine_of(OLD)], OLD),
    "the youngest of two": ([engine_of(OLD), engine_of(NEWER, built="2026-02-01T00:00:00Z")], NEWER),
    "one that is not in the store": ([engine_of(OLD, ready=False)], None),
    "another recipe": ([engine_of(OLD, replace(REFITTED, dtype="float16"))], None),
    "one that was compiled whole has no plan": ([engine_of(OLD, replace(REFITTED, rebuild="Full"))], None),
    "itself": ([engine_of(WANTED)], None),
}


@pytest.mark.parametrize("name", CANDIDATES)
def test_whose_plan_is_taken(name):
    others, digest = CANDIDATES[name]
    wanted = Engine.from_api(engine_of(WANTED, ready=False))
    found = find_base(wanted, [Engine.from_api(other) for other in others])
    assert (None if found is None else found.spec.checkpoint_digest) == digest


def test_a_full_rebuild_takes_nobody_s_plan():
    full = replace(REFITTED, rebuild="Full")
    wanted = Engine.from_api(engine_of(WANTED, full, ready=False))
    assert find_base(wanted, [Engine.from_api(engine_of(OLD, full))]) is None


async def answer_to(world: World, *bases: tuple[dict | None, str | None], facts: dict | None = None):
    operator = Operator(world)
    operator.memory.namespaces["team"] = "ns-uid"
    for base, text in bases:
        if base is not None:
            operator.observed.put(base)
            if text is not None:
                world.store.objects[engine_prefix("ns-uid", base["spec"]["key"]) + "manifest.json"] = text
    report = BuildReport(
        pod_uid="p", engine_key="k", phase=BuildPhase.BUILDING, wants_refit_base=True, refit_facts=facts or {}
    )
    answer = await operator.exchange.builds._answer("team", engine_of(WANTED, ready=False), report)
    assert answer is not None and answer.refit_base is not None
    return answer.refit_base


def manifest_of(base: dict, *paths: str, layers: int = 32) -> str:
    files = tuple(ManifestFile(path, 10, "ab" * 32) for path in paths)
    inputs = key_inputs(base["spec"]["checkpointDigest"], REFITTED)
    return Manifest(base["spec"]["key"], inputs, files, "cd" * 32, facts={"layers": layers}).to_json()


async def test_the_builder_gets_the_plan_and_the_network_it_is_of():
    base = engine_of(OLD)
    text = manifest_of(base, "config.json", "rank0.engine", "refit-config.json", "refit-rank0.engine")
    found = await answer_to(World(), (base, text))
    assert (found.engine, found.facts) == (base["metadata"]["name"], {"layers": 32})
    assert [file.path for file in found.files] == ["refit-config.json", "refit-rank0.engine"]
    assert all(f"{base['spec']['key']}/{file.path}" in file.url and file.size == 10 for file in found.files)


@pytest.mark.parametrize("text", [None, "{", "whole"])
async def test_where_there_is_no_plan_the_builder_is_told_so(text):
    base = engine_of(OLD)
    said = manifest_of(base, "config.json", "rank0.engine") if text == "whole" else text
    assert (await answer_to(World(), (base, said))).files == ()
    assert (await answer_to(World())).files == ()


@pytest.mark.parametrize(("layers", "digest"), [(32, OLD), (40, NEWER), (12, None)])
async def test_the_youngest_of_the_same_network_is_taken(layers, digest):
    """The youngest of all may be another network by the same recipe: a larger model of the family."""
    older, newer = engine_of(OLD), engine_of(NEWER, built="2026-02-01T00:00:00Z")
    broken = engine_of("0d" * 32, built="2026-03-01T00:00:00Z")
    found = await answer_to(
        World(),
        (older, manifest_of(older, "refit-rank0.engine")),
        (newer, manifest_of(newer, "refit-rank0.engine", layers=40)),
        (broken, "{"),
        facts={"layers": layers},
    )
    names = {OLD: older["metadata"]["name"], NEWER: newer["metadata"]["name"], None: ""}
    assert found.engine == names[digest]
