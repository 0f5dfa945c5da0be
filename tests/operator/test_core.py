"""Pure parts: diff, names, work queue, observed view, status, manifests, settings."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from hotstart.operator.adapters.object_store import make_store
from hotstart.operator.adapters.permissions import REQUIRED
from hotstart.operator.api import (
    CompletionModel,
    CompletionModelStatus,
    Condition,
    ConditionStatus,
    ConditionType,
    Duration,
    Reason,
)
from hotstart.operator.api.status import (
    CheckpointStatus,
    ColdStart,
    Decision,
    EngineReference,
    LatencyStatus,
    NetworkStatus,
)
from hotstart.operator.core.backoff import Backoff
from hotstart.operator.core.diff import covers, diff_merge
from hotstart.operator.core.errors import BadSettings, Retryable
from hotstart.operator.core.names import build_job_name, fit, inspect_job_name, pod_name
from hotstart.operator.core.pod_manifest import make_pod
from hotstart.operator.core.revision import Images, make_assignment, make_target
from hotstart.operator.core.service_manifests import make_disruption_budget, selector_text, service_name
from hotstart.operator.core.status import is_due
from hotstart.operator.core.status_size import STATUS_LIMIT, bound_status, size_of
from hotstart.operator.reconcile.observed import Key, Observed
from hotstart.operator.reconcile.work_queue import WorkQueue
from hotstart.operator.settings import read_settings
from hypothesis import given
from hypothesis import strategies as st

from tests.operator.doubles import SPEC, merge

plain = st.recursive(
    st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text(max_size=3), plain, max_size=4)


@given(objects)
def test_the_diff_of_equals_is_empty(value):
    assert diff_merge(value, value) == {}
    assert covers(value, value)


@given(objects, objects)
def test_a_diff_leads_from_the_old_to_the_new(old, new):
    assert merge(old, diff_merge(old, new)) == new


@given(objects, objects)
def test_what_is_merged_in_is_covered(old, new):
    if "" not in new and all(not isinstance(value, dict) for value in new.values()):
        assert covers({**old, **new}, new)


@given(st.text("abcdefghij-.", min_size=1, max_size=253).filter(lambda t: t[0].isalpha() and t[-1].isalpha()))
def test_names_fit_in_a_label_and_long_ones_stay_apart(name):
    for made in (
        fit(name),
        inspect_job_name(name, "f" * 64, 12),
        pod_name(name, "a" * 16, 999, 12),
        service_name(name),
    ):
        assert len(made) <= 63
    assert fit(name + "x" * 80) != fit(name + "x" * 79 + "y")
    assert "." not in service_name(name) and "." not in pod_name(name, "a" * 16, 0, 0)
    assert build_job_name("k" * 64, 3) == "build-" + "k" * 24 + "-3"


@given(st.integers(0, 100))
def test_back_off_grows_and_ends_at_its_cap(failures):
    backoff = Backoff(0.5, 30.0)
    assert 0.0 <= backoff.delay(failures) <= backoff.delay(failures + 1) <= 30.0


def make_model(**changes) -> CompletionModel:
    metadata = {"name": "m", "namespace": "team", "uid": "u1", "generation": 3}
    return CompletionModel.from_api({"metadata": metadata, "spec": merge(SPEC, changes)})


def make_some_pod(**changes):
    model = make_model(**changes)
    target = make_target(model.spec, engine_key="k" * 64, engine_name="k" * 40, manifest_sha256="d" * 64)
    assignment = make_assignment(model.spec, target, model="team/m", generation=3)
    return make_pod(
        model,
        target,
        assignment,
        Images("triton:1", "builder:1", "triton-trtllm:1", "builder-trtllm:1"),
        slot=0,
        attempt=0,
        now=1.0,
    )


def test_a_pod_passes_the_restricted_standard():
    spec = make_some_pod()["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["seccompProfile"]
    for container in (*spec["initContainers"], *spec["containers"]):
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False and security["capabilities"] == {"drop": ["ALL"]}
        assert security["readOnlyRootFilesystem"] is True
    kinds = {next(kind for kind in volume if kind != "name") for volume in spec["volumes"]}
    assert kinds <= {"emptyDir", "configMap", "downwardAPI"}


def test_resources_go_to_triton():
    resources = {"requests": {"cpu": "300m"}, "limits": {"cpu": "700m", "memory": "1Gi"}}
    (triton,) = make_some_pod(serving={"resources": resources})["spec"]["containers"]
    assert triton["resources"]["limits"] == {"cpu": "700m", "memory": "1Gi"}
    assert triton["resources"]["requests"] == {"cpu": "300m", "memory": "1Gi"}


@pytest.mark.parametrize(
    ("change", "another"),
    [
        ({"serving": {"maxNewTokens": 7}}, True),
        ({"serving": {"resources": {"limits": {"cpu": "2"}}}}, True),
        ({"runtimeRelease": "0.2.0"}, True),
        ({"replicas": 5}, False),
        ({"scaling": {"maxReplicas": 5}}, False),
        ({"management": "Paused"}, False),
    ],
)
def test_what_makes_another_revision(change, another):
    label = "hotstart.dev/revision"
    before = make_some_pod()["metadata"]["labels"][label]
    assert (make_some_pod(**change)["metadata"]["labels"][label] != before) is another


@pytest.mark.parametrize(("replicas", "available"), [(0, 0), (1, 1), (2, 1), (10, 9)])
def test_the_disruption_budget_is_an_integer_that_never_gives_up_the_last(replicas, available):
    spec = make_disruption_budget(make_model(), replicas)["spec"]
    assert spec["minAvailable"] == available
    assert spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def make_status(messages: int, decisions: int) -> CompletionModelStatus:
    moment = datetime(2027, 1, 1, tzinfo=UTC)
    return CompletionModelStatus(
        conditions=tuple(
            Condition(type=f"T{i}", status="True", last_transition_time=moment, reason="Ready", message="x" * messages)
            for i in range(10)
        ),
        decisions=tuple(
            Decision(
                time=moment,
                from_replicas=i,
                to_replicas=i + 1,
                reason="DemandRose",
                message="y" * 100,
                inputs={f"name{n}": "1.00 requests" for n in range(7)},
            )
            for i in range(decisions)
        ),
    )


@pytest.mark.parametrize("messages", [10, 200, 700])
def test_status_stays_within_four_kilobytes(messages):
    bounded = bound_status(make_status(messages, 10))
    assert size_of(bounded) <= STATUS_LIMIT
    assert bounded.decisions[0].inputs, "the newest decision keeps its inputs"


texts = st.integers(0, 700).flatmap(lambda count: st.sampled_from("x\u00e9\u4f60\U0001f600").map(lambda c: c * count))


@st.composite
def full_statuses(draw) -> CompletionModelStatus:
    """All that the operator writes, as long as it may be."""
    moment = datetime(2027, 1, 1, tzinfo=UTC)
    inputs = ("burst", "trend", "queued", "concurrencyPerReplica", "ready", "coming", "p95")
    phases = ("schedule", "start", "fetch", "verify", "load", "warmup", "other")
    network = {"layers": 32, "hidden": 4096, "kv_heads": 8, "head_dim": 128, "vocab": 250_000}
    uri = f"s3://bucket/{draw(st.integers(0, 1000)) * 'u'}/"
    return CompletionModelStatus(
        observed_generation=draw(st.integers(0, 2**31)),
        conditions=tuple(
            Condition(
                type=kind,
                status=draw(st.sampled_from(ConditionStatus)),
                last_transition_time=moment,
                reason=draw(st.sampled_from(Reason)),
                message=draw(texts),
            )
            for kind in ConditionType
        ),
        replicas=1000,
        ready_replicas=1000,
        selector=selector_text("m" * draw(st.integers(1, 253))),
        revision="a" * 16,
        plan=draw(texts),
        engine=EngineReference(name="k" * 40, key="k" * 64, revision="r" * 16),
        checkpoint=CheckpointStatus(
            uri=uri,
            revision=draw(texts)[:128],
            digest="d" * 64,
            spec_hash="s" * 64,
            architecture="a" * 64,
            format="safetensors",
            parameters=10**11,
            size_bytes=10**12,
            tokenizer_digest="t" * 64,
            files=99,
            network=NetworkStatus(**network),
        ),
        latency=LatencyStatus(value=Duration("940ms"), window=Duration("60s"), slo=Duration("250ms")),
        decisions=tuple(
            Decision(
                time=moment,
                from_replicas=number,
                to_replicas=number + 1,
                reason=draw(st.sampled_from(Reason)),
                message=draw(texts),
                inputs=dict.fromkeys(inputs, "123.45 requests at once, the work of 12.3"),
            )
            for number in range(draw(st.integers(0, 10)))
        ),
        cold_start=ColdStart(
            pod="p" * 63, measured_at=moment, total_milliseconds=123_456, phases=dict.fromkeys(phases, 12_345)
        ),
        builds=3,
    )


@given(full_statuses())
def test_the_fullest_status_stays_within_four_kilobytes_and_keeps_what_is_decided_on(status):
    bounded = bound_status(status)
    assert size_of(bounded) <= STATUS_LIMIT
    assert [(c.type, c.status, c.reason) for c in bounded.conditions] == [
        (c.type, c.status, c.reason) for c in status.conditions
    ]
    assert bounded.checkpoint is not None and status.checkpoint is not None
    named = {"uri": "", "revision": ""}
    assert bounded.checkpoint.model_copy(update=named) == status.checkpoint.model_copy(update=named)
    assert (bounded.engine, bounded.latency, bounded.revision) == (status.engine, status.latency, status.revision)


def test_status_is_written_at_once_for_a_count_and_rarely_for_latency():
    old = make_status(10, 1)
    latency = {"latency": {"percentile": 95, "value": "120ms"}}
    slower = CompletionModelStatus.model_validate({**old.to_api(), **latency})
    assert not is_due(old, old, since=1e9)
    assert not is_due(old, slower, since=5)
    assert is_due(old, slower, since=30)
    assert is_due(old, old.model_copy(update={"replicas": 3}), since=0)


def make_object(uid: str, version: int, name: str = "a") -> dict:
    return {"kind": "Pod", "metadata": {"name": name, "namespace": "n", "uid": uid, "resourceVersion": str(version)}}


def test_an_older_version_never_replaces_a_newer_one():
    observed = Observed()
    assert observed.put(make_object("u", 5))
    assert not observed.put(make_object("u", 4))
    observed.remove(make_object("u", 6))
    assert not observed.put(make_object("u", 5)), "a late event does not bring it back"
    assert observed.put(make_object("other", 3)), "another object of the name is another object"


def test_a_list_takes_away_what_it_lacks_and_not_what_is_newer_than_it():
    observed = Observed()
    observed.put(make_object("old", 5, "a"))
    observed.put(make_object("new", 9, "b"))
    observed.replace("Pod", [], before=7)
    assert [obj["metadata"]["uid"] for obj in observed.all("Pod")] == ["new"]


KEY = Key("CompletionModel", "n", "m")


async def wait_for(what) -> None:
    for _ in range(2000):
        if what():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("not within 10 s")


async def test_the_queue_is_serial_per_key_and_forgets_duplicates():
    running, most, runs = 0, 0, 0
    go = asyncio.Event()

    async def work(key):
        nonlocal running, most, runs
        running, runs = running + 1, runs + 1
        most = max(most, running)
        await go.wait()
        running -= 1

    queue = WorkQueue(work, workers=4)
    task = asyncio.create_task(queue.run())
    queue.add(KEY)
    await wait_for(lambda: runs == 1)
    for _ in range(5):
        queue.add(KEY)
    go.set()
    await wait_for(lambda: runs == 2 and running == 0)
    assert most == 1
    task.cancel()


async def test_the_queue_tries_again_what_failed():
    runs = 0

    async def work(key):
        nonlocal runs
        runs += 1
        if runs < 3:
            raise Retryable("not yet")
        if runs == 3:
            raise RuntimeError("a fault")

    queue = WorkQueue(work, workers=1)
    task = asyncio.create_task(queue.run())
    queue.add(KEY)
    await wait_for(lambda: runs == 4)
    task.cancel()


ENVIRONMENT = {
    "HOTSTART_NAMESPACE": "hotstart-system",
    "HOTSTART_IMAGE_TRITON_CPU": "t:1",
    "HOTSTART_IMAGE_BUILDER": "b:1",
    "HOTSTART_IMAGE_TRITON_TRTLLM": "tt:1",
    "HOTSTART_IMAGE_BUILDER_TRTLLM": "bt:1",
    "HOTSTART_STORE_BUCKET": "engines",
    "AWS_ACCESS_KEY_ID": "a",
    "AWS_SECRET_ACCESS_KEY": "b",
}


def test_settings_are_read():
    settings = read_settings({**ENVIRONMENT, "HOTSTART_WATCH_NAMESPACES": "a, b", "POD_NAME": "op-1"})
    assert settings.watch_namespaces == ("a", "b")
    assert settings.identity.startswith("op-1_")


def test_new_credentials_of_the_store_are_taken_up(tmp_path):
    for name, text in (("AWS_ACCESS_KEY_ID", "old"), ("AWS_SECRET_ACCESS_KEY", "old-secret")):
        (tmp_path / name).write_text(text)
    store = make_store(read_settings({**ENVIRONMENT, "HOTSTART_STORE_CREDENTIALS": str(tmp_path)}).store)
    assert "X-Amz-Credential=old%2F" in store.presign_get("engines/e")
    (tmp_path / "AWS_ACCESS_KEY_ID").write_text("new\n")
    (tmp_path / "AWS_SESSION_TOKEN").write_text("a-token")
    url = store.presign_get("engines/e")
    assert "X-Amz-Credential=new%2F" in url and "X-Amz-Security-Token=a-token" in url
    (tmp_path / "AWS_SECRET_ACCESS_KEY").unlink()
    assert "X-Amz-Credential=new%2F" in store.presign_get("engines/e"), "those of before, while they are not whole"


def test_without_a_folder_of_credentials_they_are_those_of_the_environment():
    assert "X-Amz-Credential=a%2F" in make_store(read_settings(ENVIRONMENT).store).presign_get("engines/e")


@pytest.mark.parametrize("missing", sorted(ENVIRONMENT))
def test_a_missing_variable_is_named(missing):
    with pytest.raises(BadSettings, match=missing):
        read_settings({name: value for name, value in ENVIRONMENT.items() if name != missing})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HOTSTART_STORE_ENDPOINT", "minio:9000"),
        ("HOTSTART_IMAGE_PULL_POLICY", "Sometimes"),
        ("HOTSTART_METRICS_PORT", "x"),
    ],
)
def test_a_wrong_variable_is_named(name, value):
    with pytest.raises(BadSettings, match=name):
        read_settings({**ENVIRONMENT, name: value})


def test_no_secret_is_read_outside_the_own_namespace():
    assert not [p for p in REQUIRED if p.resource == "secrets" and p.scope != "own"]
