"""An engine that is damaged in the store is built again by itself: when that is certain, and once an hour at most."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import pytest
from hotstart.engines.collection import StoredObject
from hotstart.engines.manifest import parse_manifest
from hotstart.engines.s3 import StorePlace
from hotstart.engines.store import S3EngineStore
from hotstart.exchange.messages import PodFailure
from hotstart.operator.adapters.object_store import ThreadedStore
from hotstart.operator.core.damage import ANNOTATION_MENDED, MEND_SECONDS, find_damage
from hotstart.operator.core.errors import StoreFailed
from hotstart.operator.reconcile.mend import LOOK_SECONDS, Mender
from hotstart.operator.reconcile.observed import Key
from hotstart.operator.reconcile.work_queue import WorkQueue

from tests.operator.doubles import NAMESPACE
from tests.operator.world import World

CORRUPT = PodFailure(reason="EngineCorrupt", message="model.bin from the store differs", retryable=False)
FIRST_TRY = CORRUPT.model_copy(update={"retryable": True})


class Stage:
    """A model that serves with one replica, and the mender."""

    def __init__(self, world: World) -> None:
        self.world, self.store = world, world.store
        operator = world.operator
        self.queue = WorkQueue(operator.engines.reconcile)
        self.queue.add = operator.queue.add
        self.mender = Mender(
            *(world.cluster, world.store, world.events, world.clock, operator.observed, operator.memory),
            *(self.queue, operator.engines),
        )

        reconcile = operator.models.reconcile

        async def hear_first(key: Key) -> float | None:  # as the leader does
            self.mender.hear(key.namespace)
            return await reconcile(key)

        operator.models = SimpleNamespace(reconcile=hear_first)

    def engine(self) -> dict:
        (found,) = self.world.cluster.all("Engine")
        return found

    def path(self, name: str) -> str:
        (key,) = [key for key in self.store.objects if key.endswith(f"/{name}")]
        return key

    def flip(self) -> None:
        """The same size, other bytes, written later; every pod that fetches it finds out."""
        self.store.objects[self.path("model.bin")] = "y" * 10
        self.store.modified = {self.path("model.bin"): self.world.clock.now()}
        self.accuse(CORRUPT)

    def accuse(self, failure: PodFailure) -> None:
        self.world.agents.failures["*"] = failure
        self.world.apply(replicas=2)

    def is_whole(self) -> bool:
        return "y" * 10 not in self.store.objects.values()

    async def run(self, seconds: int) -> None:
        for _ in range(seconds):
            await self.mender.turn()
            if self.store.modified and self.is_whole():
                self.store.modified = {}
                self.world.agents.failures.clear()
            await self.world.run(1)

    async def run_until(self, what) -> None:
        for _ in range(90):
            if what():
                return
            await self.run(1)
        raise AssertionError(self.world.conditions())

    def builds(self) -> int:
        return sum(write.startswith("create Job/build-") for write in self.world.cluster.writes)

    def events(self) -> list[str]:
        return [note.message for note in self.world.events.notes if "damaged in the store" in note.message]

    def two_serve(self) -> bool:
        return self.world.is_ready() and self.world.model()["status"]["readyReplicas"] == 2


@pytest.fixture
async def stage() -> Stage:
    world = World()
    world.apply()
    await world.run_until(world.is_ready)
    return Stage(world)


async def test_a_flipped_bit_that_the_store_shows_is_mended_by_one_pods_word(stage: Stage) -> None:
    (first,) = [pod["metadata"]["uid"] for pod in stage.world.pods()]
    stage.flip()
    await stage.run_until(lambda: stage.builds() == 2)
    assert first in [pod["metadata"]["uid"] for pod in stage.world.pods()], "what serves stays"
    assert stage.world.model()["status"]["readyReplicas"] == 1
    await stage.run_until(stage.two_serve)
    (said,) = stage.events()
    assert "model.bin was written after the engine was complete" in said and "built again" in said
    assert ANNOTATION_MENDED in stage.engine()["metadata"]["annotations"]


async def test_one_pod_alone_takes_nothing_from_a_store_that_looks_whole(stage: Stage) -> None:
    """Its memory, its disk or its way to the store may be what is wrong."""
    before = dict(stage.store.objects)
    stage.accuse(CORRUPT)
    await stage.run_until(lambda: stage.mender._looked)
    stage.world.agents.failures.clear()
    await stage.run_until(stage.two_serve)
    assert (stage.store.objects, stage.builds(), stage.events()) == (before, 1, [])


async def test_two_pods_are_believed(stage: Stage) -> None:
    stage.accuse(CORRUPT)
    await stage.run_until(lambda: stage.builds() == 2)
    stage.world.agents.failures.clear()
    await stage.run_until(stage.two_serve)
    (said,) = stage.events()
    assert "2 pods got other bytes" in said


async def test_a_pod_that_fetches_once_more_is_not_heard_yet(stage: Stage) -> None:
    stage.accuse(FIRST_TRY)
    await stage.run(30)
    assert not stage.mender._looked


async def test_a_manifest_that_cannot_be_read_is_enough(stage: Stage) -> None:
    stage.store.objects[stage.path("manifest.json")] = '{"files": ['
    stage.world.clock.seconds += 400  # the operator looks at every engine at each resync
    await stage.run_until(lambda: stage.builds() == 2)
    await stage.run_until(stage.world.is_ready)
    assert parse_manifest(stage.store.objects[stage.path("manifest.json")], key=stage.engine()["spec"]["key"])


async def test_what_is_damaged_again_within_the_hour_is_left_and_said(stage: Stage) -> None:
    stage.flip()
    await stage.run_until(stage.two_serve)
    stage.world.apply(replicas=1)
    await stage.run_until(lambda: len(stage.world.pods()) == 1)
    stage.flip()
    await stage.run_until(lambda: len(stage.events()) == 2)
    assert "less than an hour ago" in stage.events()[-1]
    assert (stage.builds(), stage.is_whole()) == (2, False)
    stage.world.clock.seconds += MEND_SECONDS
    await stage.run_until(lambda: stage.builds() == 3)
    await stage.run_until(stage.two_serve)


async def test_a_paused_model_has_nothing_deleted(stage: Stage) -> None:
    stage.flip()
    await stage.run_until(lambda: stage.mender._accusers)
    stage.world.apply(replicas=2, management="Paused")
    await stage.run(int(LOOK_SECONDS) + 10)
    assert not stage.is_whole()


async def test_an_engine_that_is_decided_on_just_now_is_looked_at_later(stage: Stage) -> None:
    stage.flip()
    key = Key("Engine", NAMESPACE, stage.engine()["metadata"]["name"])
    async with stage.queue.hold(key) as held:
        assert held
        await stage.run(20)
        assert not stage.is_whole()
    await stage.run_until(stage.two_serve)


async def test_a_silent_store_is_asked_again(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.flip()
    await stage.run_until(lambda: stage.mender._accusers)
    stage.store.failure = StoreFailed("no answer", "StoreUnreachable")
    await stage.run(10)
    assert "not mended" in caplog.text
    stage.store.failure = None
    stage.world.clock.seconds += LOOK_SECONDS
    await stage.run_until(stage.two_serve)


@pytest.mark.parametrize(
    ("changes", "accusers", "said"),
    [
        pytest.param({}, 0, "", id="nobody says anything"),
        pytest.param({}, 1, "", id="one pod, and the store looks whole"),
        pytest.param({}, 2, "2 pods got other bytes", id="two pods"),
        pytest.param({"model.bin": None}, 1, "model.bin is gone", id="a file is gone"),
        pytest.param({"model.bin": (9, 100.0)}, 1, "9 bytes instead of 10", id="a file is cut short"),
        pytest.param({"model.bin": (10, 101.0)}, 1, "was written after", id="a file was written later"),
        pytest.param({"model.bin": (10, 101.0)}, 0, "", id="a later file that nobody complains of"),
    ],
)
async def test_what_counts_as_damage(stage: Stage, changes, accusers, said) -> None:
    text, key = stage.store.objects[stage.path("manifest.json")], stage.engine()["spec"]["key"]
    stored = {"model.bin": (10, 100.0), "manifest.json": (99, 100.0), **changes}
    objects = [StoredObject(f"p/{name}", *facts) for name, facts in stored.items() if facts is not None]
    found = find_damage(text, key, "p/", objects, accusers)
    assert said in found and bool(said) == bool(found)
    assert "describes another engine" in find_damage(text, "ef" * 32, "p/", objects, 0)
    assert json.loads(text)["files"], "the manifest is a real one"


async def test_a_manifest_that_is_no_text_any_longer_is_one_that_cannot_be_read(stage: Stage) -> None:
    """The operator reads it through its own store: a flipped high bit is no UTF-8."""
    damaged = bytearray(stage.store.objects[stage.path("manifest.json")].encode())
    damaged[100] ^= 0x80
    real = S3EngineStore(StorePlace(bucket="b", endpoint="http://127.0.0.1:1", access_key="a", secret_key="b"))
    real._client = SimpleNamespace(get_object=lambda Bucket, Key: {"Body": io.BytesIO(damaged)})
    text = await ThreadedStore(lambda: real, real.location).get_manifest(stage.path("manifest.json"))
    assert text is not None
    stage.store.objects[stage.path("manifest.json")] = text
    stage.world.clock.seconds += 400  # the operator looks at every engine at each resync
    await stage.run_until(lambda: stage.builds() == 2)
    await stage.run_until(stage.world.is_ready)
