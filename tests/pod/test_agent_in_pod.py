"""The agent as a process beside a real Triton: what a pod lives through."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import aiohttp
import pytest
from hotstart.engines.triton.server import KEY_HEADER
from hotstart.exchange.messages import PodRequest, PodState

from tests.support.pod import ENGINE_KEY, Pod, Store, make_assignment, make_serving, until

pytestmark = pytest.mark.integration


def request_for(store: Store, **changes: object) -> PodRequest:
    return PodRequest(assignment=make_assignment(**changes), files=store.files())


async def bring_up(pod: Pod, request: PodRequest) -> None:
    pod.start_agent()
    await pod.start_triton()
    await pod.reach(request, PodState.READY)


async def test_an_assignment_is_fetched_loaded_warmed_and_served(pod: Pod, store: Store) -> None:
    request = request_for(store)
    await bring_up(pod, request)
    report = await pod.ask(request)
    assert set(report.phases) == {"start", "fetch", "verify", "load", "warmup"}
    assert report.bytes_done == report.bytes_total == sum(file.size for file in request.files)
    assert (report.generation, report.engine_key, report.failure) == (1, ENGINE_KEY, None)
    assert await pod.ready()
    assert await pod.complete() == await pod.complete()

    async def counted() -> bool:
        seen = await pod.ask(request)
        assert seen.completed <= 2, "warm-up requests are not counted"
        return (seen.completed, seen.in_flight, seen.queued) == (2, 0, 0)

    await until(counted, "two requests counted, none in flight")
    async with pod.session.get(f"http://127.0.0.1:{pod.port}/metrics") as response:
        assert 'hotstart_agent_state{state="Ready"} 1' in await response.text()


async def test_a_killed_triton_comes_back_with_its_model(pod: Pod, store: Store) -> None:
    request = request_for(store)
    await bring_up(pod, request)
    before = await pod.complete()
    fetched = len(store.gets)
    assert pod.triton is not None
    pod.triton.kill()

    async def not_ready() -> bool:
        return not await pod.ready()

    await until(not_ready, "the pod not ready without Triton")
    assert (await pod.ask(request)).state is PodState.RELOADING
    await pod.start_triton()
    await pod.reach(PodRequest(), PodState.READY)
    assert await pod.complete() == before
    assert len(store.gets) == fetched, "the engine on the disk is used"


async def test_an_idle_triton_that_is_told_to_end_does_not_wait_for_the_agent(pod: Pod, store: Store) -> None:
    pod.plan = replace(pod.plan, exit_timeout_seconds=20)
    await bring_up(pod, request_for(store))
    assert pod.triton is not None
    process = pod.triton.process
    process.terminate()

    async def ended() -> bool:
        return process.poll() is not None

    await until(ended, "Triton's end")
    assert process.returncode == 0 and "Exit timeout expired" not in (pod.root / "triton.log").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_restarted_agent_adopts_the_loaded_model(pod: Pod, store: Store, number: signal.Signals) -> None:
    request = request_for(store)
    await bring_up(pod, request)
    loads = (pod.root / "triton.log").read_text().count("successfully loaded")
    pod.end_agent(number)
    assert await pod.complete()
    pod.start_agent()
    await until(pod.ready, "ready without the operator")
    report = await pod.ask(PodRequest())
    assert (report.state, report.generation, report.engine_key) == (PodState.READY, 1, ENGINE_KEY)
    assert (pod.root / "triton.log").read_text().count("successfully loaded") == loads == 1


async def test_both_containers_restart_without_the_operator(pod: Pod, store: Store) -> None:
    await bring_up(pod, request_for(store))
    fetched = len(store.gets)
    pod.end_agent(signal.SIGKILL)
    assert pod.triton is not None
    pod.triton.kill()
    pod.start_agent()
    await pod.start_triton()
    await until(pod.ready, "ready from what is on the disk")
    assert len(store.gets) == fetched


async def test_the_annotation_is_enough_to_begin(pod: Pod, store: Store) -> None:
    (pod.root / "podinfo").mkdir()
    (pod.root / "podinfo" / "assignment").write_text(make_assignment(generation=7).model_dump_json())
    pod.start_agent()
    await pod.start_triton()
    report = await pod.reach(PodRequest(), PodState.FETCHING)
    assert report.generation == 7
    await pod.reach(request_for(store, generation=7), PodState.READY)


async def test_a_flipped_bit_is_found_before_serving(pod: Pod, store: Store) -> None:
    request = request_for(store)
    model = store.folder / "model.bin"
    damaged = bytearray(model.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    model.write_bytes(damaged)
    pod.start_agent()
    await pod.start_triton()
    report = await pod.reach(request, PodState.FAILED)
    assert report.failure is not None
    assert report.failure.reason == "EngineCorrupt"
    assert "model.bin" in report.failure.message

    async def given_up() -> bool:
        failure = (await pod.ask(request)).failure
        return failure is not None and not failure.retryable

    await until(given_up, "no further attempt")
    assert store.gets.count("model.bin") == 2, "fetched once more, and not again"
    said = (await pod.ask(request)).failure
    assert said is not None and "delete the engine's folder in the store" in said.message
    assert not (pod.root / "models" / "engines" / ENGINE_KEY).exists()
    assert not await pod.ready()


async def test_an_engine_mended_in_the_store_is_served_by_the_refetch(pod: Pod, store: Store) -> None:
    request = request_for(store)
    model = store.folder / "model.bin"
    good = model.read_bytes()
    model.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    pod.start_agent()
    await pod.start_triton()
    await pod.reach(request, PodState.FAILED)
    model.write_bytes(good)
    await pod.reach(request, PodState.READY)


async def test_a_truncated_file_is_no_engine(pod: Pod, store: Store) -> None:
    request = request_for(store)
    model = store.folder / "model.bin"
    model.write_bytes(model.read_bytes()[:-1000])
    pod.start_agent()
    await pod.start_triton()
    report = await pod.reach(request, PodState.FAILED)
    assert report.failure is not None
    assert report.failure.reason == "EngineCorrupt"


async def test_expired_urls_and_a_failing_store_are_outlived(pod: Pod, store: Store) -> None:
    store.failing = 3
    expired = request_for(store)
    store.token = "2"
    pod.start_agent()
    await pod.start_triton()
    await pod.reach(expired, PodState.FETCHING)

    async def refused() -> bool:
        return "url refused" in pod.log

    await until(refused, "a refusal of the expired URL")
    await pod.reach(request_for(store), PodState.READY)


async def test_other_serving_options_load_anew_without_a_fetch(pod: Pod, store: Store) -> None:
    await bring_up(pod, request_for(store))
    fetched = len(store.gets)
    changed = request_for(store, generation=2, serving=make_serving(max_new_tokens=3))
    await pod.ask(changed)

    async def three_tokens() -> bool:
        return (await pod.ask(changed)).state is PodState.READY

    await until(three_tokens, "ready with the new options")
    url = f"http://127.0.0.1:{pod.plan.http_port}/v2/models/completion/generate"
    async with pod.session.post(url, json={"prompt": "x = 1\n"}) as response:
        details = json.loads((await response.json())["details"])
    assert details["completion_tokens"] <= 3
    assert len(store.gets) == fetched
    await pod.ask(request_for(store, generation=1))
    assert (await pod.ask(PodRequest())).generation == 2, "an older assignment is ignored"


async def test_the_repository_api_needs_the_pods_key(pod: Pod, store: Store) -> None:
    await bring_up(pod, request_for(store))
    base = f"http://127.0.0.1:{pod.plan.http_port}/v2"
    for path in ("/repository/index", "/repository/models/completion/unload", "/systemsharedmemory/region/x/register"):
        async with pod.session.post(base + path, json={}) as response:
            assert response.status == 403, path
    async with pod.session.post(f"{base}/repository/index", headers={KEY_HEADER: pod.plan.key}) as response:
        assert response.status == 200
    from tritonclient.grpc import InferenceServerClient, InferenceServerException

    with InferenceServerClient(f"127.0.0.1:{pod.plan.grpc_port}") as client:
        with pytest.raises(InferenceServerException, match="restricted"):
            client.unload_model("completion")
        assert client.is_model_ready("completion")


async def test_messages_of_strangers_are_refused(pod: Pod, store: Store) -> None:
    from hotstart.exchange.client import ExchangeClient, ExchangeFailed
    from hotstart.exchange.signing import make_signing_key

    pod.start_agent()
    await until(pod.listens, "the agent's port")
    pod.client = ExchangeClient(session=pod.session, key=make_signing_key(), epoch=99)
    with pytest.raises(ExchangeFailed, match="401"):
        await pod.ask(request_for(store))
    async with pod.session.get(f"http://127.0.0.1:{pod.port}/metrics") as response:
        assert 'hotstart_agent_state{state="Empty"} 1' in await response.text()


@pytest.fixture
def small_disk(pod: Pod) -> Iterator[None]:
    models = pod.root / "models"
    models.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(models)], check=True)  # needs root
    yield
    pod.end_agent()
    subprocess.run(["umount", str(models)], check=True)


@pytest.mark.usefixtures("small_disk")
async def test_a_full_disk_is_named(pod: Pod, store: Store) -> None:
    pod.start_agent()
    report = await pod.reach(request_for(store), PodState.FAILED)
    assert report.failure is not None
    assert (report.failure.reason, report.failure.retryable) == ("DiskFull", True)


async def test_an_engine_that_triton_cannot_load_is_named(pod: Pod, store: Store) -> None:
    (store.folder / "engine.json").write_text("{}")
    request = request_for(store)
    pod.start_agent()
    await pod.start_triton()
    report = await pod.reach(request, PodState.FAILED)
    assert report.failure is not None
    assert report.failure.reason == "EngineLoadFailed"


async def test_a_drain_reports_empty_only_when_it_is(pod: Pod, store: Store) -> None:
    request = request_for(store)
    await bring_up(pod, request)
    drain = request.model_copy(update={"drain": True})
    assert (await pod.ask(drain)).in_flight > 0, "the first word of a drain is never that the pod is empty"

    async def empty() -> bool:
        return (await pod.ask(drain)).in_flight == 0

    await until(empty, "an idle pod drained")
    assert await pod.ready()


async def test_sigterm_ends_the_agent_cleanly(pod: Pod) -> None:
    pod.start_agent()
    await until(pod.listens, "the agent's port")
    agent = pod.agent
    assert agent is not None
    pod.end_agent()
    assert agent.returncode == 0
    with pytest.raises(aiohttp.ClientError):
        await pod.session.get(f"http://127.0.0.1:{pod.port}/healthz")
