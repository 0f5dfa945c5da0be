"""The agent as a process beside a real Triton whose ``tensorrt_llm`` is the stand-in: what a pod on GPUs meets."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
from aiohttp import web
from hotstart.engines.pod_agent.cli import parse_server
from hotstart.engines.pod_agent.load_failures import REMEDIES, make_load_failure
from hotstart.engines.pod_agent.loading import ServerFacts
from hotstart.engines.runtimes.tensorrt_llm.failures import KNOWN
from hotstart.engines.triton.completion.names import REQUESTS
from hotstart.exchange.messages import PodRequest, PodState

from tests.router.bench import MODEL, make_settings, running_router
from tests.router.bench import until as until_true
from tests.support.pod import Pod, Store, make_assignment, make_serving, until
from tests.support.standin_engine import make_backends, write_standin_engine
from tests.support.tiny_checkpoint import TinyShape
from tests.support.tiny_engine import tamper_with_goldens, write_tiny_engine
from tests.support.triton import free_port

DEVICE = "expecting compute 8.6 got compute 8.0"
WRONG_GPU = f"The engine plan file is generated on an incompatible device, {DEVICE}, please rebuild."


@pytest.fixture
async def gpu_store(tmp_path: Path, engine_folder: Path) -> AsyncIterator[Store]:
    """The store with an engine of the tensorrt_llm runtime."""
    made = Store(write_standin_engine(tmp_path / "store", engine_folder))
    async for served in serve(made):
        yield served


async def serve(made: Store) -> AsyncIterator[Store]:
    app = web.Application()
    app.router.add_get("/{name}", made.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", free_port())
    await site.start()
    made.address = site.name.removeprefix("http://")
    yield made
    await runner.cleanup()


@pytest.fixture
def gpu_pod(pod: Pod, tmp_path: Path) -> Pod:
    """A pod of the GPU image, but for its backend."""
    pod.backends = make_backends(tmp_path / "backends")
    pod.environment = {"HOTSTART_RUNTIME": "tensorrt_llm"}
    return pod


def request_for(store: Store, **changes: object) -> PodRequest:
    return PodRequest(assignment=make_assignment(runtime="tensorrt_llm", **changes), files=store.files())


async def bring_up(pod: Pod, request: PodRequest) -> None:
    pod.start_agent()
    await pod.start_triton()
    await pod.reach(request, PodState.READY)


def triton_log(pod: Pod) -> str:
    return (pod.root / "triton.log").read_text()


async def outcomes(pod: Pod) -> dict[str, int]:
    """Requests that the completion model has ended, by how."""
    async with pod.session.get(f"http://127.0.0.1:{pod.plan.metrics_port}/metrics") as response:
        lines = re.findall(rf'^{REQUESTS}{{.*outcome="(\w+)".*}} (\d+)', await response.text(), re.MULTILINE)
    return {outcome: int(count) for outcome, count in lines}


def loads(pod: Pod, model: str) -> int:
    return triton_log(pod).count(f"successfully loaded '{model}'")


@pytest.mark.integration
async def test_the_engine_is_loaded_first_and_once(gpu_pod: Pod, gpu_store: Store) -> None:
    await bring_up(gpu_pod, request_for(gpu_store))
    text = await gpu_pod.complete()
    assert text == await gpu_pod.complete() != ""
    log = triton_log(gpu_pod)
    assert log.index("loading: tensorrt_llm:1") < log.index("loading: completion:1")
    changed = request_for(gpu_store, generation=2, serving=make_serving(max_new_tokens=3))
    await gpu_pod.ask(changed)

    async def again() -> bool:
        return (await gpu_pod.ask(changed)).state is PodState.READY and loads(gpu_pod, "completion") == 2

    await until(again, "the completion model with other serving options")
    assert loads(gpu_pod, "tensorrt_llm") == 1
    assert len(await gpu_pod.complete()) < len(text)


@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_restarted_agent_adopts_both_models(gpu_pod: Pod, gpu_store: Store, number: signal.Signals) -> None:
    await bring_up(gpu_pod, request_for(gpu_store))
    gpu_pod.end_agent(number)
    gpu_pod.start_agent()
    await until(gpu_pod.ready, "ready without the operator")
    assert loads(gpu_pod, "tensorrt_llm") == loads(gpu_pod, "completion") == 1


@pytest.mark.integration
async def test_only_an_engine_that_answers_its_golden_questions_is_served(
    gpu_pod: Pod, gpu_store: Store, verified: Path
) -> None:
    write_standin_engine(gpu_store.folder, verified)
    await bring_up(gpu_pod, request_for(gpu_store))
    assert await gpu_pod.complete()


@pytest.mark.integration
async def test_one_that_does_not_is_never_served_whoever_finds_it_loaded(
    gpu_pod: Pod, gpu_store: Store, verified: Path
) -> None:
    """Triton goes on holding it as ready; the agent that comes after asks it too."""
    write_standin_engine(gpu_store.folder, verified)
    tamper_with_goldens(gpu_store.folder)
    gpu_pod.start_agent()
    await gpu_pod.start_triton()
    for restarts in range(2):
        report = await gpu_pod.reach(request_for(gpu_store), PodState.FAILED, PodState.READY)
        assert report.failure is not None, f"served after {restarts} restarts"
        assert (report.failure.reason, report.failure.retryable) == ("VerificationFailed", False)
        assert not await gpu_pod.ready()
        gpu_pod.end_agent(signal.SIGKILL)
        gpu_pod.start_agent()
        await until(gpu_pod.listens, "the new agent listens")
    assert "adopted a loaded model" in gpu_pod.log
    assert loads(gpu_pod, "completion") == 1


@pytest.mark.integration
async def test_a_killed_triton_comes_back_with_both_models(gpu_pod: Pod, gpu_store: Store) -> None:
    await bring_up(gpu_pod, request_for(gpu_store))
    before = await gpu_pod.complete()
    assert gpu_pod.triton is not None
    gpu_pod.triton.kill()

    async def not_ready() -> bool:
        return not await gpu_pod.ready()

    await until(not_ready, "the pod not ready without Triton")
    await gpu_pod.start_triton()
    await gpu_pod.reach(PodRequest(), PodState.READY)
    assert await gpu_pod.complete() == before


@pytest.mark.integration
async def test_another_engine_is_not_loaded_over_the_first(gpu_pod: Pod, gpu_store: Store) -> None:
    await bring_up(gpu_pod, request_for(gpu_store))
    report = await gpu_pod.reach(request_for(gpu_store, generation=2, engine_key="cd" * 32), PodState.FAILED)
    assert report.failure is not None
    assert (report.failure.reason, report.failure.retryable) == ("EngineLoadFailed", False)
    assert "delete the pod" in report.failure.message


@pytest.mark.integration
async def test_an_engine_of_another_gpu_is_named_and_not_tried_again(gpu_pod: Pod, gpu_store: Store) -> None:
    (gpu_store.folder / "rank0.engine").write_text(f"Error Code 6: API Usage Error ({WRONG_GPU})")
    gpu_pod.start_agent()
    await gpu_pod.start_triton()
    report = await gpu_pod.reach(request_for(gpu_store), PodState.FAILED)
    assert report.failure is not None
    assert (report.failure.reason, report.failure.retryable) == ("AcceleratorMismatch", False)
    assert DEVICE in report.failure.message
    assert not await gpu_pod.ready()


@pytest.mark.integration
async def test_an_engine_of_more_ranks_than_the_pod_is_refused(
    gpu_pod: Pod, gpu_store: Store, engine_folder: Path
) -> None:
    write_standin_engine(gpu_store.folder, engine_folder, ranks=2)
    gpu_pod.start_agent()
    await gpu_pod.start_triton()
    report = await gpu_pod.reach(request_for(gpu_store), PodState.FAILED)
    assert report.failure is not None and not report.failure.retryable
    assert "split over 2 GPUs and this pod has 1" in report.failure.message


@pytest.mark.integration
async def test_an_image_of_cpus_refuses_it_before_anything_is_fetched(pod: Pod, gpu_store: Store) -> None:
    pod.start_agent()
    report = await pod.reach(request_for(gpu_store), PodState.FAILED)
    assert report.failure is not None
    assert "use that runtime's image" in report.failure.message
    assert gpu_store.gets == []


@pytest.mark.integration
async def test_clients_complete_stream_and_cancel_through_the_router(gpu_pod: Pod, tmp_path: Path) -> None:
    """Store, agent, Triton, both models and router as processes or servers; the ``openai`` package as client."""
    router_folder = tmp_path / "router"
    router_folder.mkdir()
    shape = TinyShape(layers=4, width=512, intermediate=1024, heads=8, kv_heads=8, context=4096)
    engine = await asyncio.to_thread(write_tiny_engine, tmp_path / "slow", shape=shape)
    async for store in serve(Store(write_standin_engine(tmp_path / "slow-store", engine, batch_size=2))):
        serving = make_serving(max_new_tokens=1500, max_input_tokens=96, queue_limit=14)
        await bring_up(gpu_pod, request_for(store, serving=serving))
        async with running_router(make_settings(router_folder)) as bench:
            await bench.serve(f"127.0.0.1:{gpu_pod.plan.grpc_port}", cap=2, max_new_tokens=1500)
            async with openai.AsyncOpenAI(base_url=f"{bench.url}/v1", api_key="none", max_retries=0) as client:
                asked = {"model": MODEL, "prompt": "def add(a, b):\n    ", "max_tokens": 24, "temperature": 0}
                answer = await client.completions.create(**asked)
                stream = await client.completions.create(**asked, stream=True)
                pieces = [chunk.choices[0].text async for chunk in stream]
                assert len(pieces) > 2 and "".join(pieces) == answer.choices[0].text
                long = [
                    asyncio.create_task(client.completions.create(**{**asked, "max_tokens": 1500})) for _ in range(2)
                ]
                await until_true(lambda: bench.lane.in_flight == 2)
                for task in long:
                    task.cancel()
                again = await client.completions.create(**asked)
                assert again.choices[0].text == answer.choices[0].text, "the places in the engine are free again"
                await until_true(lambda: bench.lane.in_flight == 0)

        async def idle() -> bool:
            report = await gpu_pod.ask(PodRequest())
            return (report.in_flight, report.queued) == (0, 0)

        await until(idle, "a pod with nothing in flight")

        async def counted() -> bool:
            return await outcomes(gpu_pod) == {"completed": 3, "cancelled": 2, "failed": 0}

        await until(counted, "both long requests cancelled, and the others completed")


SAID = {
    WRONG_GPU: "AcceleratorMismatch",
    "[TensorRT-LLM][ERROR] MPI size 1 != TP size 2 * PP size 1": "AcceleratorMismatch",
    "The engine plan file is not compatible with this version of TensorRT, expecting library version 10.14.1.48 got "
    "10.13.3.9, please rebuild.": "ToolchainMismatch",
    "Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed.": "ToolchainMismatch",
    "Failed to deserialize cuda engine": "ToolchainMismatch",
    "Assertion failed: d == a + length": "ToolchainMismatch",
    "Tensor names in engine are not the same as expected": "ToolchainMismatch",
    "maxTokensInPagedKvCache must be large enough to process at least 1 sequence to completion": "DoesNotFit",
    "CUDA runtime error in cudaMallocAsync(&ptr, n, s): out of memory": "OutOfMemory",
    "Unable to initialize shared memory key 'triton_python_backend_shm_region_1'": "EngineLoadFailed",
    "something that nobody has seen": "EngineLoadFailed",
}


@pytest.mark.parametrize("said", SAID)
def test_what_triton_says_becomes_a_reason_with_a_remedy(said: str) -> None:
    failure = make_load_failure(f"load failed for model 'tensorrt_llm': version 1 is at UNAVAILABLE state: {said};")
    assert failure.failure.reason == SAID[said]
    assert said in failure.failure.message, "in Triton's own words"
    assert len(failure.failure.message) > len(said) + 20


def test_a_mismatch_is_never_tried_again_and_full_memory_is() -> None:
    retryable = {reason.value: again for reason, (_, again) in REMEDIES.items()}
    assert retryable == {
        "AcceleratorMismatch": False,
        "ToolchainMismatch": False,
        "OutOfMemory": True,
        "DoesNotFit": False,
        "DiskFull": True,
    }
    assert set(REMEDIES) <= {known.reason for known in KNOWN}


def test_the_agent_knows_its_server_from_the_environment() -> None:
    assert parse_server({}) == ServerFacts()
    given = {
        "HOTSTART_RUNTIME": "tensorrt_llm",
        "HOTSTART_TENSOR_PARALLEL": "4",
        "NVIDIA_TRITON_SERVER_VERSION": "26.07",
    }
    assert parse_server(given) == ServerFacts("tensorrt_llm", 4, histograms=True)
    for name, value in (("HOTSTART_RUNTIME", "vllm"), ("HOTSTART_TENSOR_PARALLEL", "0")):
        with pytest.raises(ValueError, match=name):
            parse_server({name: value})
