"""What the operator's doubles of the API server and the store promise, held against the real ones by the same tests."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator

import pytest
from hotstart.engines.key import make_key
from hotstart.engines.manifest import MANIFEST_NAME, Manifest, ManifestFile
from hotstart.operator.adapters.kube import KubeCluster, connect
from hotstart.operator.adapters.object_store import make_store
from hotstart.operator.api import CompletionModelSpec
from hotstart.operator.core.errors import Conflict, HotstartError, StoreFailed
from hotstart.operator.reconcile.ports import Cluster, Store, Upload
from hotstart.operator.settings import StoreSettings

from tests.operator.doubles import NAMESPACE, SPEC, Clock, FakeCluster, FakeStore

LABEL = "hotstart.dev/test"
BOTH = ["fake", pytest.param("real", marks=pytest.mark.integration)]


@pytest.fixture(params=BOTH)
async def place(request, monkeypatch) -> AsyncIterator[tuple[Cluster, str]]:
    """A cluster and an empty namespace in it."""
    if request.param == "fake":
        yield FakeCluster(Clock()), NAMESPACE
        return
    server = request.getfixturevalue("api_server")
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
    cluster = KubeCluster(await connect())
    yield cluster, request.getfixturevalue("namespace")
    await cluster.close()


@pytest.fixture(params=BOTH)
def store(request) -> Store:
    if request.param == "fake":
        return FakeStore()
    real = request.getfixturevalue("object_store")
    settings = StoreSettings(
        bucket=real.make_bucket(f"contract-{uuid.uuid4().hex[:8]}"),
        endpoint=real.endpoint,
        access_key=real.access_key,
        secret_key=real.secret_key,
        region="us-east-1",
        session_token="",
    )
    return make_store(settings)


def make_config(namespace: str, name: str = "c", **data: str) -> dict:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace, "labels": {LABEL: name}},
        "data": data or {"a": "1"},
    }


def make_model(namespace: str, name: str = "m") -> dict:
    spec = CompletionModelSpec.model_validate(SPEC).to_api()
    return {
        "apiVersion": "hotstart.dev/v1alpha1",
        "kind": "CompletionModel",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


async def test_what_is_created_stands_once(place):
    cluster, namespace = place
    assert await cluster.get("ConfigMap", namespace, "c") is None
    made = await cluster.create(make_config(namespace))
    assert made["metadata"]["uid"]
    assert (await cluster.get("ConfigMap", namespace, "c"))["data"] == {"a": "1"}
    with pytest.raises(Conflict):
        await cluster.create(make_config(namespace))


async def test_applying_twice_is_one_version(place):
    cluster, namespace = place
    first = await cluster.apply(make_config(namespace, a="1", b="2"))
    again = await cluster.apply(make_config(namespace, a="1", b="2"))
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    changed = await cluster.apply(make_config(namespace, a="3", b="2"))
    assert changed["metadata"]["resourceVersion"] != first["metadata"]["resourceVersion"]
    assert changed["data"] == {"a": "3", "b": "2"}


async def test_a_patch_merges_and_null_takes_away(place):
    cluster, namespace = place
    await cluster.create(make_config(namespace, a="1", b="2"))
    patched = await cluster.patch("ConfigMap", namespace, "c", {"data": {"a": None, "d": "4"}})
    assert patched["data"] == {"b": "2", "d": "4"}
    assert await cluster.patch("ConfigMap", namespace, "gone", {"data": {"a": "1"}}) is None


async def test_status_and_spec_are_written_apart(place):
    cluster, namespace = place
    made = await cluster.create(make_model(namespace))
    assert made["metadata"]["generation"] == 1
    written = await cluster.patch_status("CompletionModel", namespace, "m", {"status": {"readyReplicas": 2}})
    assert written["status"]["readyReplicas"] == 2
    assert written["metadata"]["generation"] == 1, "status is no new generation"
    assert written["metadata"]["resourceVersion"] != made["metadata"]["resourceVersion"]
    patched = await cluster.patch(
        "CompletionModel", namespace, "m", {"spec": {"replicas": 3}, "status": {"readyReplicas": 9}}
    )
    assert patched["spec"]["replicas"] == 3
    assert patched["metadata"]["generation"] == 2
    assert patched["status"]["readyReplicas"] == 2, "status is written by its own subresource only"
    assert await cluster.patch_status("CompletionModel", namespace, "gone", {"status": {}}) is None


async def test_scale_writes_replicas_and_nothing_else(place):
    cluster, namespace = place
    await cluster.create(make_model(namespace))
    await cluster.set_scale(namespace, "m", 4)
    found = await cluster.get("CompletionModel", namespace, "m")
    assert found["spec"]["replicas"] == 4
    assert found["metadata"]["generation"] == 2
    await cluster.set_scale(namespace, "m", 4)
    assert (await cluster.get("CompletionModel", namespace, "m"))["metadata"] == found["metadata"]
    await cluster.set_scale(namespace, "gone", 1)


async def test_only_the_object_with_that_uid_is_deleted(place):
    cluster, namespace = place
    made = await cluster.create(make_config(namespace))
    with pytest.raises(Conflict):
        await cluster.delete("ConfigMap", namespace, "c", str(uuid.uuid4()))
    assert await cluster.get("ConfigMap", namespace, "c") is not None
    assert await cluster.delete("ConfigMap", namespace, "c", made["metadata"]["uid"]) is None
    assert await cluster.get("ConfigMap", namespace, "c") is None
    assert await cluster.delete("ConfigMap", namespace, "c", made["metadata"]["uid"]) is None


async def test_what_somebody_holds_is_marked_and_stands_on(place):
    cluster, namespace = place
    held = make_config(namespace)
    held["metadata"]["finalizers"] = ["hotstart.dev/test"]
    made = await cluster.create(held)
    left = await cluster.delete("ConfigMap", namespace, "c", made["metadata"]["uid"])
    assert left is not None
    assert left["metadata"]["deletionTimestamp"]
    assert (await cluster.get("ConfigMap", namespace, "c"))["metadata"]["deletionTimestamp"]
    await cluster.patch("ConfigMap", namespace, "c", {"metadata": {"finalizers": None}})
    assert await cluster.get("ConfigMap", namespace, "c") is None


async def test_lists_are_by_namespace_and_label(place):
    cluster, namespace = place
    for name in ("c", "d"):
        await cluster.create(make_config(namespace, name))
    mine = await cluster.list("ConfigMap", namespace=namespace, labels=f"{LABEL}=d")
    assert [obj["metadata"]["name"] for obj in mine] == ["d"]
    assert [obj["kind"] for obj in mine] == ["ConfigMap"]
    assert await cluster.list("ConfigMap", namespace=namespace, labels=f"{LABEL}=x") == ()


# ---------------------------------------------------------------------------------------------------------- the store


def make_text(size: int, *, seconds: float = 0.0) -> str:
    """A manifest of one file of ``size`` bytes."""
    inputs = {"checkpoint": "ab" * 32}
    files = (ManifestFile("model.bin", size, "ab" * 32),)
    return Manifest(make_key(inputs), inputs, files, "cd" * 32, build_seconds=seconds).to_json()


async def test_the_first_manifest_stays(store):
    first, again, other = make_text(10, seconds=1.0), make_text(10, seconds=2.0), make_text(11)
    assert await store.get_manifest("engines/u/k/") is None
    assert await store.put_manifest("engines/u/k/", first) == first
    assert await store.put_manifest("engines/u/k/", again) == first
    with pytest.raises(StoreFailed):
        await store.put_manifest("engines/u/k/", other)
    assert await store.get_manifest("engines/u/k/") == first


async def test_a_quarantine_is_replaced(store):
    assert await store.get_quarantine("engines/u/k/") is None
    await store.put_quarantine("engines/u/k/", "first")
    await store.put_quarantine("engines/u/k/", "second")
    assert await store.get_quarantine("engines/u/k/") == "second"


async def test_an_upload_is_listed_until_it_is_aborted(store):
    key = "engines/u/k/model.bin"
    upload = await store.create_upload(key)
    assert [(found.object_key, found.upload_id) for found in await store.list_uploads("engines/u/")] == [(key, upload)]
    assert await store.list_uploads("engines/v/") == ()
    await store.abort_upload(key, upload)
    await store.abort_upload(key, upload)
    assert await store.list_uploads("engines/u/") == ()


async def test_an_upload_without_its_parts_makes_no_object(store):
    key = "engines/u/k/model.bin"
    upload = await store.create_upload(key)
    with contextlib.suppress(HotstartError):
        await store.complete_upload(Upload(key, upload, (), 10))
    assert await store.list_objects("engines/") == ()


async def test_a_prefix_goes_whole_and_alone(store):
    await store.put_manifest("engines/u/k/", make_text(10))
    await store.put_quarantine("engines/u/k/", "why")
    await store.put_manifest("engines/u/k2/", make_text(10))
    found = await store.list_objects("engines/u/")
    assert {(entry.key, entry.size) for entry in found} >= {("engines/u/k/" + MANIFEST_NAME, len(make_text(10)))}
    assert await store.delete_prefix("engines/u/k/") == 2
    assert [entry.key for entry in await store.list_objects("engines/u/")] == ["engines/u/k2/" + MANIFEST_NAME]
    assert await store.delete_prefix("engines/u/k/") == 0


async def test_urls_name_their_object(store):
    key = "engines/u/k/model.bin"
    upload = await store.create_upload(key)
    for url in (store.presign_get(key), store.presign_put(key), store.presign_part(key, upload, 1)):
        assert url.startswith("http")
        assert key in url
