"""On a machine with a GPU and TensorRT-LLM: convert, build, verify, calibrate, serve and measure a small MPT network.

Each test goes on from the one before, with the code of the builder and of a pod. Nobody has run this file to its end:
no machine of the authors had a GPU with TensorRT-LLM. ``tests/gpu/run`` starts it in the image, or here.
"""

from __future__ import annotations

import concurrent.futures
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hotstart.engines.accelerators import find_accelerator, make_platform
from hotstart.engines.calibrate.calibrate import calibrate
from hotstart.engines.calibrate.triton import OwnTriton, TritonCompletion
from hotstart.engines.checkpoints.safetensors_folder import SafetensorsFolder
from hotstart.engines.recipe import EngineLimits, EngineRecipe, make_toolchain
from hotstart.engines.runtimes.runtime import check_toolchain, load_runtime
from hotstart.engines.runtimes.tensorrt_llm import gpus
from hotstart.engines.triton.server import find_container
from hotstart.engines.verify.verify import Subject, verify_engine
from hotstart.exchange.messages import ServingOptions, StopMode

from tests.support.tiny_mpt import TinyMptShape, write_tiny_mpt

#: Heads of 128, as replit-code has them: TensorRT-LLM's attention knows few sizes.
SHAPE = TinyMptShape(layers=8, width=1024, heads=8, kv_heads=2, context=1024)
LIMITS = EngineLimits(batch_size=16, input_tokens=896, sequence_tokens=1024)
SERVING = ServingOptions(max_input_tokens=896, max_new_tokens=32, stop=StopMode.NONE)
PROMPT = "def add(a, b):\n    return "
LONE, AT_ONCE = 40, 16


def find_lack() -> str:
    """Why nothing can run here; '' where it can."""
    if shutil.which("nvidia-smi") is None or subprocess.run(("nvidia-smi", "-L"), capture_output=True).returncode:
        return "no NVIDIA GPU here (nvidia-smi finds none)"
    if importlib.util.find_spec("tensorrt_llm") is None:
        return "tensorrt_llm is not installed for this Python: run tests/gpu/run, which uses the image triton-trtllm"
    if find_container() is None:
        return "no Triton with TensorRT-LLM in /opt/tritonserver: run tests/gpu/run, which uses the image triton-trtllm"
    return ""


LACK = find_lack()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(LACK), reason=LACK)]


@dataclass(frozen=True)
class Place:
    """The folders of one run, and what is built."""

    root: Path
    recipe: EngineRecipe

    @property
    def engine(self) -> Path:
        return self.root / "engine"

    @property
    def checkpoint(self) -> Path:
        return self.root / "checkpoint"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    answer = subprocess.run(gpus.QUERY, capture_output=True, text=True, check=True).stdout
    (gpu, *_) = gpus.parse_gpus(answer)
    accelerator = find_accelerator(gpu.product, None, gpu.memory_mib, f"{gpu.sm // 10}.{gpu.sm % 10}")
    assert accelerator is not None, f"engines/accelerators.py does not know {gpu.product}"
    root = tmp_path_factory.mktemp("gpu")
    for name in ("converted", "engine", "work"):
        (root / name).mkdir()
    write_tiny_mpt(root / "checkpoint", shape=SHAPE, dtype="float16")
    toolchain = make_toolchain("tensorrt_llm", "hotstart-mpt")
    return Place(root, EngineRecipe(toolchain, "float16", "none", 1, LIMITS, make_platform(accelerator)))


@pytest.fixture(scope="module")
def server(place: Place) -> Iterator[TritonCompletion]:
    with OwnTriton(place.engine, SERVING) as completion:
        yield completion


def record(**figures: object) -> None:
    """Prints figures, and adds them to the file that HOTSTART_GPU_FIGURES names."""
    line = json.dumps(figures)
    sys.stderr.write(f"\n{line}\n")
    if path := os.environ.get("HOTSTART_GPU_FIGURES"):
        with Path(path).open("a") as output:
            output.write(line + "\n")


def test_convert_and_build(place: Place) -> None:
    runtime = load_runtime("tensorrt_llm")
    check_toolchain(runtime, place.recipe)
    runtime.check_platform(place.recipe)
    shares: list[float] = []
    began = time.monotonic()
    runtime.convert(SafetensorsFolder(place.checkpoint), place.recipe, place.root / "converted", shares.append)
    converted = time.monotonic() - began
    runtime.build(place.root / "converted", place.recipe, place.engine, shares.append, place.root / "work")
    record(step="build", convert_seconds=round(converted, 1), seconds=round(time.monotonic() - began, 1))
    assert {path.name for path in place.engine.iterdir()} >= {"rank0.engine", "config.json", "engine.json"}
    assert all(0 <= share <= 1 for share in shares)


def test_verify(place: Place) -> None:
    subject = Subject(SafetensorsFolder(place.checkpoint), "c" * 64, "t" * 64, place.recipe, place.engine)
    found = verify_engine(load_runtime("tensorrt_llm"), subject, place.root / "expectations")
    record(step="verify", **found.to_json())
    assert found.agreed == found.compared > 0
    assert (place.engine / "golden.json").exists()


def test_calibrate(place: Place) -> None:
    profile = calibrate(place.engine, place.recipe, SERVING)
    record(step="calibrate", **profile.to_json())
    assert profile.lone and profile.load
    assert profile.prefill_tokens_per_second > 0


def complete(server: TritonCompletion, name: str, **options: object) -> tuple[str, dict[str, object]]:
    """One completion through the completion model; its goldens were replayed as it was loaded."""
    asked = {"max_tokens": 16, "temperature": 0.0, "stop_mode": "none", **options}
    work = server.client.generate(request_id=name, prompt=PROMPT, suffix="", options=asked)
    return server._wait(work)


def test_serve(server: TritonCompletion) -> None:
    text, details = complete(server, "one")
    assert complete(server, "two")[0] == text != ""
    assert details["completion_tokens"] == 16 or details["finish_reason"] == "stop"
    assert details["engine_queue_ms"] >= 0  # type: ignore[operator]
    assert details["reused_blocks"] == 0, "ALiBi: reuse is off"
    sampled = [complete(server, f"s{seed}", temperature=1.0, seed=seed)[0] for seed in (7, 7, 8)]
    assert sampled[0] == sampled[1]
    stop = text[len(text) // 2 :][:2]
    cut, ended = complete(server, "stop", stop=[stop])
    assert cut == text[: text.find(stop)]
    assert ended["finish_reason"] == "stop"


def test_measure(server: TritonCompletion) -> None:
    def timed(number: int) -> float:
        began = time.monotonic()
        complete(server, f"m{number}")
        return (time.monotonic() - began) * 1000

    lone = [timed(number) for number in range(LONE)]
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        together = list(pool.map(timed, range(LONE * 4)))
    record(
        step="measure",
        lone_p50_ms=round(statistics.median(lone), 1),
        lone_p95_ms=round(statistics.quantiles(lone, n=20)[-1], 1),
        at_once=AT_ONCE,
        together_p95_ms=round(statistics.quantiles(together, n=20)[-1], 1),
    )
    assert len(together) == LONE * 4
