"""The sweep of the engine store, in the operator's world: what it deletes, and above all what it does not."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hotstart.engines.collection import UNFINISHED_SECONDS, Fate
from hotstart.engines.key import engine_name
from hotstart.engines.manifest import engine_prefix
from hotstart.operator.core.errors import BadSettings, StoreFailed
from hotstart.operator.reconcile.collect import CollectionSettings, Collector, sweep_quietly
from hotstart.operator.reconcile.observed import Key
from hotstart.operator.reconcile.ports import OpenUpload
from hotstart.operator.reconcile.work_queue import WorkQueue
from hotstart.operator.settings import read_collection

from tests.operator.doubles import NAMESPACE
from tests.operator.world import World

DAY = 86_400.0
TTL = 7 * DAY
BUILT = "cd" * 32  # key of an engine that is being built


@pytest.fixture
async def world() -> World:
    """One model that is served, and its engine."""
    world = World()
    world.apply()
    await world.run_until(world.is_ready)
    return world


def make_collector(world: World, *, delete: bool = True) -> Collector:
    operator = world.operator
    assert operator is not None
    queue = WorkQueue(operator.engines.reconcile)
    settings = CollectionSettings(delete=delete, ttl=TTL)
    return Collector(world.cluster, world.store, world.clock, operator.observed, operator.memory, queue, settings)


def engine(world: World) -> dict:
    (found,) = world.cluster.all("Engine")
    return found


def forget_model(world: World) -> None:
    world.cluster.drop("CompletionModel", "m")
    for job in world.cluster.all("Job"):  # Kubernetes takes finished ones away after an hour
        world.cluster.drop("Job", job["metadata"]["name"])


async def make_garbage(world: World) -> Collector:
    """The engine's time is over, and nothing is left that uses it."""
    collector = make_collector(world)
    forget_model(world)
    for pod in world.cluster.all("Pod"):
        world.cluster.drop("Pod", pod["metadata"]["name"])
    await collector.sweep()
    world.clock.seconds += TTL + 60
    return collector


def make_object(world: World, kind: str, key: str) -> None:
    """A pod or a Job that uses the engine and belongs to nothing."""
    component = "serving" if kind == "Pod" else "build"
    labels = {
        "app.kubernetes.io/managed-by": "hotstart",
        "app.kubernetes.io/component": component,
        "hotstart.dev/engine": engine_name(key),
        "hotstart.dev/role": "draining",
    }
    spec = {"spec": {"template": {"metadata": {"labels": labels}, "spec": {"containers": []}}}} if kind == "Job" else {}
    name = f"user-{len(world.cluster.all(kind))}"
    world.cluster.create_now(kind, {"metadata": {"name": name, "labels": labels}, **spec})


async def test_an_engine_that_is_served_stays_for_ever(world: World) -> None:
    collector = make_collector(world)
    before = dict(world.store.objects)
    for _ in range(3):
        world.clock.seconds += 100 * DAY
        survey = await collector.sweep()
    assert world.store.objects == before
    assert survey.bytes_by_fate()[Fate.USED] == sum(map(len, before.values()))
    assert "unusedSince" not in engine(world)["status"]


async def test_an_unused_engine_goes_after_its_time_and_not_before(world: World) -> None:
    collector = make_collector(world)
    forget_model(world)
    await collector.sweep()
    assert "unusedSince" in engine(world)["status"]
    world.clock.seconds += TTL - 60
    await collector.sweep()
    assert world.store.objects
    world.clock.seconds += 120
    await collector.sweep()
    assert world.store.objects == {}
    assert world.cluster.all("Engine") == []


async def test_the_time_counts_on_through_a_restart_and_a_reconcile(world: World) -> None:
    forget_model(world)
    await make_collector(world).sweep()
    since = engine(world)["status"]["unusedSince"]
    world.restart()
    world.clock.seconds += 400
    await world.run(2)
    assert engine(world)["status"]["unusedSince"] == since


async def test_a_model_that_comes_back_in_time_builds_nothing(world: World) -> None:
    collector = make_collector(world)
    forget_model(world)
    await collector.sweep()
    world.clock.seconds += TTL - 60
    world.cluster.writes.clear()
    world.apply()
    await world.run_until(world.is_ready)
    world.clock.seconds += TTL
    await collector.sweep()
    assert world.store.objects
    assert "unusedSince" not in engine(world)["status"]
    assert not [write for write in world.cluster.writes if write.startswith("create Job/build-")]


async def test_a_dry_run_reports_and_deletes_nothing(world: World) -> None:
    reports: list = []
    collector = replace(make_collector(world, delete=False), on_report=reports.append)
    forget_model(world)
    await collector.sweep()
    world.clock.seconds += TTL + 60
    size = sum(map(len, world.store.objects.values()))
    await collector.sweep()
    assert reports[-1][Fate.EXPIRED] == size
    assert sum(map(len, world.store.objects.values())) == size
    assert engine(world)


async def test_half_an_upload_goes_after_a_day_unless_it_is_being_built(world: World) -> None:
    """Also one of an engine that serves, whose first builder died: only a Job says that somebody is at it."""
    for job in world.cluster.all("Job"):
        world.cluster.drop("Job", job["metadata"]["name"])
    uid = world.operator.memory.namespaces[NAMESPACE]
    left, key = engine_prefix(uid, "ef" * 32), engine(world)["spec"]["key"]
    world.store.objects[f"{left}model.bin"] = "half"
    world.store.uploads = [
        OpenUpload(f"{left}model.bin", "old", world.clock.now()),
        OpenUpload(f"{engine_prefix(uid, key)}model.bin", "of-an-engine-in-use", world.clock.now()),
        OpenUpload(f"{engine_prefix(uid, BUILT)}model.bin", "of-a-build", world.clock.now()),
        OpenUpload("engines/uid-elsewhere/ab/model.bin", "of-another-cluster", 0.0),
    ]
    make_object(world, "Job", BUILT)
    collector = make_collector(world)
    await collector.sweep()
    assert f"{left}model.bin" in world.store.objects
    assert len(world.store.uploads) == 4
    world.clock.seconds += UNFINISHED_SECONDS + 60
    await collector.sweep()
    assert f"{left}model.bin" not in world.store.objects
    assert [upload.upload_id for upload in world.store.uploads] == ["of-a-build", "of-another-cluster"]


async def test_engines_of_another_cluster_are_reported_and_left(world: World) -> None:
    prefix = engine_prefix("uid-of-another-cluster", "ab" * 32)
    world.store.objects[f"{prefix}manifest.json"] = "{}"
    world.clock.seconds += 100 * DAY
    survey = await make_collector(world).sweep()
    assert f"{prefix}manifest.json" in world.store.objects
    assert survey.bytes_by_fate()[Fate.FOREIGN] == 2


async def test_an_engine_that_is_decided_on_just_now_is_left_to_the_next_sweep(world: World) -> None:
    collector = make_collector(world)
    forget_model(world)
    await collector.sweep()
    world.clock.seconds += TTL + 60
    async with collector.queue.hold(Key("Engine", NAMESPACE, engine(world)["metadata"]["name"])) as held:
        assert held
        await collector.sweep()
    assert world.store.objects
    await collector.sweep()
    assert world.store.objects == {}


@pytest.mark.parametrize("kind", ["Pod", "Job"])
async def test_what_a_pod_or_a_build_uses_stays_where_no_model_wants_it(world: World, kind: str) -> None:
    """A pod of an earlier revision that is still draining; a build whose model was deleted."""
    forget_model(world)
    for pod in world.cluster.all("Pod"):
        world.cluster.drop("Pod", pod["metadata"]["name"])
    make_object(world, kind, engine(world)["spec"]["key"])
    collector, before = make_collector(world), dict(world.store.objects)
    for _ in range(3):
        await collector.sweep()
        world.clock.seconds += 10 * DAY
    assert world.store.objects == before
    assert "unusedSince" not in engine(world)["status"]


@pytest.mark.parametrize("kind", ["Pod", "Job"])
async def test_a_pod_or_a_build_that_comes_before_the_files_go_keeps_them(world: World, kind: str) -> None:
    """The race: it is made while the sweep waits for the API server."""
    collector, before = await make_garbage(world), dict(world.store.objects)
    key, patch = engine(world)["spec"]["key"], world.cluster.patch_status

    async def patch_slowly(*told: object) -> object:
        make_object(world, kind, key)
        return await patch(*told)

    world.cluster.patch_status = patch_slowly
    await collector.sweep()
    assert world.store.objects == before
    world.cluster.patch_status = patch
    await world.operator.engines.reconcile(Key("Engine", NAMESPACE, engine_name(key)))
    assert engine(world)["status"]["manifestDigest"], "its Engine says again that it stands"


@pytest.mark.parametrize("kind", ["Pod", "Job"])
async def test_a_pod_or_a_build_that_comes_while_the_files_go_keeps_the_engine(world: World, kind: str) -> None:
    collector = await make_garbage(world)
    key, delete_prefix = engine(world)["spec"]["key"], world.store.delete_prefix

    async def delete_slowly(prefix: str) -> int:
        make_object(world, kind, key)
        return await delete_prefix(prefix)

    world.store.delete_prefix = delete_slowly
    await collector.sweep()
    assert engine(world)


async def test_a_deletion_that_fails_half_way_is_taken_up_by_the_next_sweep(world: World) -> None:
    """It was the last engine of its namespace: without it nobody would know whose the files are."""
    collector = await make_garbage(world)
    delete_prefix = world.store.delete_prefix

    async def fail(prefix: str) -> int:
        world.store.objects.pop(f"{prefix}manifest.json")
        raise StoreFailed("no answer", "StoreUnreachable")

    world.store.delete_prefix = fail
    await collector.sweep()
    assert world.store.objects and engine(world)
    world.restart()
    await world.run(2)
    world.store.delete_prefix = delete_prefix
    await make_collector(world).sweep()
    assert world.store.objects == {}
    assert world.cluster.all("Engine") == []


async def test_one_folder_that_cannot_be_deleted_keeps_nothing_else_waiting(world: World) -> None:
    uid, reports = world.operator.memory.namespaces[NAMESPACE], []
    keys = [letter * 64 for letter in "abc"]
    for key in keys:
        world.store.objects[f"{engine_prefix(uid, key)}manifest.json"] = "{}"
    world.clock.seconds += TTL + 60
    delete_prefix = world.store.delete_prefix

    async def fail_on_the_first(prefix: str) -> int:
        if keys[0] in prefix:
            raise StoreFailed("access denied", "AccessDenied")
        return await delete_prefix(prefix)

    world.store.delete_prefix = fail_on_the_first
    await replace(make_collector(world), on_report=reports.append).sweep()
    assert [key for key in keys if any(key in name for name in world.store.objects)] == keys[:1]
    assert reports[-1][Fate.EXPIRED] == 6


async def test_an_engine_of_a_new_namespace_that_comes_meanwhile_ends_nothing(world: World) -> None:
    get = world.cluster.get
    other = {**engine(world), "kind": "Engine"}
    other["metadata"] = {**other["metadata"], "namespace": "new-team", "uid": "uid-new"}

    async def get_slowly(kind: str, *place: str) -> object:
        world.operator.observed.put(other)
        return await get(kind, *place)

    world.cluster.get = get_slowly
    world.operator.memory.namespaces.clear()
    survey = await make_collector(world).sweep()
    assert survey.fates


async def test_a_fault_in_the_sweep_does_not_end_the_leader(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async def break_down(prefix: str) -> object:
        raise KeyError(prefix)

    world.store.list_objects = break_down
    await sweep_quietly(make_collector(world))
    assert "sweep raised" in caplog.text


async def test_the_marker_of_a_quarantine_outlives_its_engine(world: World) -> None:
    collector = await make_garbage(world)
    uid, key = world.operator.memory.namespaces[NAMESPACE], engine(world)["spec"]["key"]
    marker = f"{engine_prefix(uid, key)}quarantine.json"
    world.store.objects = {marker: "{}"}
    await collector.sweep()
    assert list(world.store.objects) == [marker]
    assert world.cluster.all("Engine") == [], "the Engine itself is of no use"


async def test_an_engine_that_was_never_built_goes_after_its_time(world: World) -> None:
    collector = make_collector(world)
    forget_model(world)
    world.store.objects = {}
    await collector.sweep()
    world.clock.seconds += TTL - 60
    await collector.sweep()
    assert engine(world)
    world.clock.seconds += 120
    await collector.sweep()
    assert world.cluster.all("Engine") == []


@pytest.mark.parametrize("moment", ["take back", "delete_prefix", "delete Engine"])
async def test_a_model_that_comes_in_the_middle_of_the_deletion_is_served_in_the_end(world: World, moment: str) -> None:
    """The race: the model is applied and decided on while the sweep waits for the API server, or for the store."""
    collector = make_collector(world)
    forget_model(world)
    await collector.sweep()
    world.clock.seconds += TTL + 60
    delete_object, delete_prefix = world.cluster.delete, world.store.delete_prefix
    patch_status = world.cluster.patch_status

    async def come_back() -> None:
        world.apply()
        await world.operator.models.reconcile(Key("CompletionModel", NAMESPACE, "m"))

    async def delete(kind: str, *place: str) -> object:
        if moment == "delete Engine":
            await come_back()
        return await delete_object(kind, *place)

    async def delete_slowly(prefix: str) -> int:
        if moment == "delete_prefix":
            await come_back()
        return await delete_prefix(prefix)

    async def patch_slowly(kind: str, *told: object) -> object:
        if moment == "take back" and kind == "Engine":
            world.cluster.patch_status = patch_status
            await come_back()
        return await patch_status(kind, *told)

    world.cluster.delete, world.store.delete_prefix = delete, delete_slowly
    world.cluster.patch_status = patch_slowly
    await collector.sweep()
    world.cluster.delete, world.store.delete_prefix = delete_object, delete_prefix
    world.cluster.patch_status = patch_status
    await world.run_until(world.is_ready)
    prefix = engine_prefix(world.operator.memory.namespaces[NAMESPACE], engine(world)["spec"]["key"])
    assert f"{prefix}manifest.json" in world.store.objects
    assert all(pod.get("status", {}).get("phase") != "Failed" for pod in world.pods())


async def test_a_held_key_is_reconciled_once_it_is_released() -> None:
    seen: list[Key] = []
    done = asyncio.Event()

    async def work(key: Key) -> None:
        seen.append(key)
        done.set()

    queue, key, other = WorkQueue(work), Key("Engine", "a", "b"), Key("Engine", "a", "c")
    running = asyncio.create_task(queue.run())
    async with asyncio.timeout(10):
        async with queue.hold(key) as held:
            assert held
            queue.add(key)
            queue.add(other)
            await done.wait()
            assert seen == [other]
            done.clear()
        await done.wait()
    running.cancel()
    assert seen == [other, key]


async def test_a_silent_store_is_left_to_the_next_sweep(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.store.failure = StoreFailed("no answer", "StoreUnreachable")
    await sweep_quietly(make_collector(world))
    assert "sweep failed" in caplog.text


def test_the_settings_of_the_sweep() -> None:
    assert read_collection({}) == CollectionSettings(delete=True, ttl=TTL)
    assert read_collection({"HOTSTART_COLLECTION_MODE": "Report", "HOTSTART_COLLECTION_TTL": "1h"}) == (
        CollectionSettings(delete=False, ttl=3600)
    )
    assert read_collection({"HOTSTART_COLLECTION_MODE": "Off"}) is None
    for wrong in ({"HOTSTART_COLLECTION_MODE": "yes"}, {"HOTSTART_COLLECTION_TTL": "a week"}):
        with pytest.raises(BadSettings, match=next(iter(wrong))):
            read_collection(wrong)
