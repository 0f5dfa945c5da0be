"""The tensorrt_llm runtime with played tools: what it runs, what it keeps, and what becomes of each way to fail.

None of this is TensorRT-LLM: the tools' options and files are those of the facts, their engines are none.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hotstart.engines.accelerators import find_accelerator, make_platform
from hotstart.engines.checkpoints.safetensors_folder import SafetensorsFolder
from hotstart.engines.checkpoints.trtllm_folder import TrtllmFolder
from hotstart.engines.errors import EngineError, Reason, Retryable, Terminal
from hotstart.engines.kept import NEW_TIMING_CACHE, TIMING_CACHE
from hotstart.engines.recipe import EngineLimits, EngineRecipe
from hotstart.engines.runtimes.runtime import load_runtime
from hotstart.engines.runtimes.tensorrt_llm.model_folder import link_files
from hotstart.engines.runtimes.tensorrt_llm.scorer import TensorRTLLMScorer
from hotstart.engines.runtimes.tensorrt_llm.tensorrt_llm import BESIDE, CHECKPOINT, MODEL, TensorRTLLM
from hotstart.engines.runtimes.tensorrt_llm.tool import RUNNING, kill_running
from hotstart.engines.toolchains import find_toolchain
from hotstart.engines.verify.scorer import BrokenEngine
from hotstart.engines.verify.verify import Subject, verify_engine

from tests.engines.trtllm_world import make_world
from tests.support.tiny_checkpoint import write_tiny_checkpoint
from tests.support.tiny_mpt import write_tiny_mpt
from tests.support.trtllm_checkpoint import write_trtllm_checkpoint

H100 = find_accelerator("NVIDIA-H100-80GB-HBM3")
assert H100 is not None
MPT = EngineRecipe(
    find_toolchain("tensorrt_llm", "MPTForCausalLM"),
    "float16",
    "none",
    limits=EngineLimits(8, 96, 128),
    platform=make_platform(H100),
)
LLAMA = replace(MPT, toolchain=find_toolchain("tensorrt_llm", "LlamaForCausalLM"))
FP8 = replace(MPT, toolchain=find_toolchain("tensorrt_llm", "LlamaForCausalLM", quantization="fp8"), quantization="fp8")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what the played tools do."""

    def set_world(**what: str) -> None:
        for name, value in make_world(**what).items():
            monkeypatch.setenv(name, value)

    set_world()
    return set_world


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """Empty folders of a build."""
    found = {name: tmp_path / name for name in ("source", "converted", "engine", "work")}
    for folder in found.values():
        folder.mkdir()
    return found


def convert(places: dict[str, Path], recipe: EngineRecipe = MPT) -> None:
    """A tiny checkpoint of the recipe's network, converted."""
    source = places["source"]
    source.rmdir()
    (write_tiny_mpt if recipe.toolchain == MPT.toolchain else write_tiny_checkpoint)(source)
    TensorRTLLM().convert(SafetensorsFolder(source), recipe, places["converted"], lambda share: None, source)


def build(places: dict[str, Path], recipe: EngineRecipe = MPT) -> list[float]:
    """The shares that it told."""
    shares: list[float] = []
    TensorRTLLM().build(places["converted"], recipe, places["engine"], shares.append, places["work"])
    return shares


@pytest.mark.parametrize("ranks", [1, 2])
def test_mpt_becomes_engines_with_what_serving_needs(places: dict[str, Path], world: Any, ranks: int) -> None:
    recipe = replace(MPT, tensor_parallel=ranks)
    convert(places, recipe)
    assert (places["converted"] / CHECKPOINT / "rank0.safetensors").is_file()
    shares = build(places, recipe)
    engines = {f"rank{rank}.engine" for rank in range(ranks)}
    assert {path.name for path in places["engine"].iterdir()} == engines | {
        "config.json",
        "tokenizer.json",
        "engine.json",
    }
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    facts = json.loads((places["engine"] / "engine.json").read_text())
    assert (facts["runtime"], facts["context_length"]) == ("tensorrt_llm", 128)  # the engine's, not the network's 256
    argv = json.loads((places["work"] / "argv.json").read_text())
    assert argv[argv.index("--workers") + 1] == str(ranks)


def test_llama_goes_through_upstreams_converter(places: dict[str, Path], world: Any) -> None:
    convert(places, LLAMA)
    weights = places["converted"] / CHECKPOINT / "rank0.safetensors"
    assert weights.read_text() == "weights by convert_checkpoint.py for 0"
    assert {path.name for path in places["converted"].iterdir()} == {CHECKPOINT, BESIDE}
    build(places, LLAMA)


def test_fp8_is_calibrated_in_the_build(places: dict[str, Path], world: Any) -> None:
    convert(places, FP8)
    linked = places["converted"] / MODEL / "model.safetensors"
    assert linked.stat().st_nlink == 2  # on the disk once
    shares = build(places, FP8)
    assert shares == sorted(shares)
    assert (places["work"] / CHECKPOINT / "rank0.safetensors").read_text() == "weights by quantize.py for 0"


def test_a_tensorrt_llm_checkpoint_is_built_as_it_is(places: dict[str, Path], world: Any) -> None:
    recipe = replace(
        MPT,
        toolchain=find_toolchain("tensorrt_llm", "LlamaForCausalLM", checkpoint_format="tensorrt_llm"),
        tensor_parallel=2,
    )
    source = write_trtllm_checkpoint(places["source"], 2)
    TensorRTLLM().convert(TrtllmFolder(source), recipe, places["converted"], lambda share: None, source)
    linked = places["converted"] / CHECKPOINT / "rank1.safetensors"
    assert linked.stat().st_ino == (source / "rank1.safetensors").stat().st_ino
    with pytest.raises(Terminal, match="already converted, for tensorParallel 2"):
        TensorRTLLM().convert(
            TrtllmFolder(source), replace(recipe, tensor_parallel=1), places["engine"], lambda share: None, source
        )


def test_files_of_another_disk_are_linked_by_name(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    (places["source"] / "config.json").write_text("{}")
    monkeypatch.setattr(os, "link", refuse)
    link_files(places["source"], places["work"] / "linked", ["config.json"])
    assert (places["work"] / "linked" / "config.json").readlink() == places["source"] / "config.json"
    with pytest.raises(Terminal, match=r"has no rank0\.safetensors"):
        link_files(places["source"], places["work"] / "again", ["rank0.safetensors"])


def test_a_converter_for_another_network_is_refused(places: dict[str, Path], world: Any) -> None:
    other = replace(MPT, toolchain=find_toolchain("tensorrt_llm", "Qwen2ForCausalLM"))
    with pytest.raises(Terminal, match="inspected again") as failure:
        convert(places, other)
    assert failure.value.reason is Reason.UNSUPPORTED_RECIPE


def test_a_converter_that_is_killed_ran_out_of_memory(places: dict[str, Path], world: Any) -> None:
    world(upstream="die")
    with pytest.raises(Retryable, match="python3 was killed") as failure:
        convert(places, LLAMA)
    assert failure.value.reason is Reason.OUT_OF_MEMORY


FAILURES = [
    ("die", Reason.OUT_OF_MEMORY, "trtllm-build was killed .exit 137."),
    ("oom", Reason.OUT_OF_MEMORY, "the GPU's memory is full"),
    ("disk", Reason.DISK_FULL, "ephemeral storage"),
    ("nothing", Reason.BUILD_FAILED, "failed with exit 1"),
    ("short", Reason.BUILD_FAILED, "without rank0.engine"),
    ("other", Reason.BUILD_FAILED, "max_seq_len: 2048, not 128"),
]


@pytest.mark.parametrize(("what", "reason", "words"), FAILURES, ids=[what for what, *_ in FAILURES])
def test_each_way_to_fail_has_its_reason(
    places: dict[str, Path], world: Any, what: str, reason: Reason, words: str
) -> None:
    convert(places)
    world(trtllm=what)
    with pytest.raises(EngineError, match=words) as failure:
        build(places)
    assert failure.value.reason is reason


def test_the_last_lines_of_the_tool_are_in_the_log(
    places: dict[str, Path], world: Any, caplog: pytest.LogCaptureFixture
) -> None:
    convert(places)
    world(trtllm="oom")
    with caplog.at_level(logging.INFO), pytest.raises(EngineError):
        build(places)
    assert "tool said tool=trtllm-build line=[TRT] [E] [virtualMemoryBuffer.cpp" in caplog.text


def test_credentials_are_not_handed_to_a_tool(
    places: dict[str, Path], world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("HF_TOKEN", "secret")
    convert(places)
    build(places)
    environment = json.loads((places["work"] / "environment.json").read_text())
    assert "secret" not in environment.values()
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["HOME"] == environment["TMPDIR"] == str(places["work"])


def test_a_build_that_is_cancelled_leaves_no_process(places: dict[str, Path], world: Any) -> None:
    convert(places)
    world(trtllm="hang")
    failures: list[EngineError] = []

    def run() -> None:
        try:
            build(places)
        except EngineError as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    pid = places["work"] / "worker.pid"
    while not (pid.is_file() and pid.read_text()):
        assert thread.is_alive()
        time.sleep(0.01)
    kill_running()
    thread.join()
    assert failures[0].reason is Reason.OUT_OF_MEMORY  # told apart by nobody: the build is over
    assert not RUNNING
    with pytest.raises(ProcessLookupError):
        _wait_gone(int(pid.read_text()))


def _wait_gone(pid: int) -> None:
    while True:  # until it is no process, or a zombie that init has not collected yet
        os.kill(pid, 0)
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            raise ProcessLookupError
        time.sleep(0.01)


def test_a_timing_cache_is_read_and_left_for_the_next(places: dict[str, Path], world: Any) -> None:
    convert(places)
    (places["work"] / TIMING_CACHE).write_bytes(b"before ")
    build(places)
    assert (places["work"] / NEW_TIMING_CACHE).read_bytes() == b"before timed "


def test_the_toolchain_is_that_of_the_installed_packages(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Terminal, match="has no TensorRT") as failure:
        load_runtime("tensorrt_llm").toolchain("hotstart-mpt")
    assert failure.value.reason is Reason.TOOLCHAIN_MISMATCH
    monkeypatch.syspath_prepend(make_world()["PYTHONPATH"].split(os.pathsep)[0])
    assert load_runtime("tensorrt_llm").toolchain("hotstart-mpt") == MPT.toolchain


def test_another_gpu_is_refused_before_the_build(world: Any) -> None:
    TensorRTLLM().check_platform(MPT)
    world(gpus="NVIDIA L4, 8.9, 23034, 590.44.01")
    with pytest.raises(Terminal, match="the container sees 1 NVIDIA-L4") as failure:
        TensorRTLLM().check_platform(MPT)
    assert failure.value.reason is Reason.ACCELERATOR_MISMATCH


@pytest.fixture
def scored(places: dict[str, Path], world: Any) -> Any:
    """Opens a scorer of a played engine."""
    convert(places)
    build(places)

    def open_scorer(how: str = "") -> TensorRTLLMScorer:
        world(llm=how, checkpoint=str(places["source"]))
        scorer = TensorRTLLM().open_scorer(places["engine"], MPT)
        assert isinstance(scorer, TensorRTLLMScorer)
        return scorer

    return open_scorer


def test_an_engine_is_asked_through_a_process(scored: Any) -> None:
    scorer = scored()
    first = scorer.top_tokens([1, 2, 3, 4], [0, 3])
    assert len(first) == 2
    assert scorer.top_tokens([1, 2, 3, 4], [0, 3]) == first
    process = scorer._process
    del scorer
    assert process.poll() is not None
    assert not RUNNING


def test_an_engine_that_does_not_load_is_broken(scored: Any) -> None:
    with pytest.raises(BrokenEngine, match="cannot be loaded: RuntimeError: Failed to deserialize"):
        scored("broken")
    assert not RUNNING


def test_an_engine_whose_process_ends_in_unknown_words_is_broken(places: dict[str, Path]) -> None:
    with pytest.raises(BrokenEngine, match=r"cannot be run: its process failed with exit 3, saying .*never seen"):
        play("import sys; sys.stderr.write('words never seen\\n'); sys.exit(3)", places["engine"])
    assert not RUNNING


def play(script: str, folder: Path) -> TensorRTLLMScorer:
    """A scorer whose process is a script of Python."""
    return TensorRTLLMScorer(folder, program=(sys.executable, "-c", script))


def test_a_process_that_is_killed_says_nothing_of_the_engine(scored: Any) -> None:
    scorer = scored()
    scorer._process.kill()
    with pytest.raises(Retryable, match=r"was killed \(exit 137\)") as failure:
        scorer.top_tokens([1, 2], [0])
    assert failure.value.reason is Reason.OUT_OF_MEMORY


@pytest.mark.parametrize(
    ("script", "reason", "said"),
    [
        ("print('CUDA error: out of memory', file=sys.stderr); sys.exit(1)", Reason.OUT_OF_MEMORY, "memory is full"),
        (
            'print(json.dumps({"error": "the engine cannot be loaded: RuntimeError: No CUDA GPUs are available"}))',
            Reason.ACCELERATOR_MISMATCH,
            "sees no usable GPU",
        ),
        ("time.sleep(600)", Reason.BUILD_FAILED, "has not answered within 1 s"),
    ],
)
def test_what_the_machine_does_quarantines_no_engine(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, script: str, reason: Reason, said: str
) -> None:
    seconds = 1.0 if "sleep" in script else 60.0
    monkeypatch.setattr("hotstart.engines.runtimes.tensorrt_llm.scorer.LOAD_SECONDS", seconds)
    with pytest.raises(Retryable, match=said) as failure:
        play(f"import json, sys, time; {script}", places["engine"])
    assert failure.value.reason is reason
    assert not RUNNING


def test_a_gpu_that_is_full_while_an_engine_is_verified_is_no_verdict(scored: Any, places: dict[str, Path]) -> None:
    with pytest.raises(Retryable, match="out of memory"):
        scored("dies")

    class Full:
        def open_scorer(self, folder: Path, recipe: EngineRecipe) -> TensorRTLLMScorer:
            return scored("dies")

    subject = Subject(SafetensorsFolder(places["source"]), "c", "t", MPT, places["engine"])
    with pytest.raises(Retryable, match="out of memory") as failure:
        verify_engine(Full(), subject, places["engine"].with_name("kept"))
    assert failure.value.reason is Reason.OUT_OF_MEMORY
