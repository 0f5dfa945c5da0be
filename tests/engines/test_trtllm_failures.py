"""What tools of TensorRT-LLM say when they fail -> reason, remedy, and whether another try may help."""

from __future__ import annotations

import pytest
from hotstart.engines.errors import DriverMissing, HostMemoryFull, Reason, Retryable, Terminal
from hotstart.engines.runtimes.tensorrt_llm.failures import KNOWN, LAST_LINES, make_failure
from hypothesis import given
from hypothesis import strategies as st

#: Lines as the tools print them; the first block is that of the facts' "strings to recognise".
SAID = [
    (
        "[TRT] [E] IRuntime::deserializeCudaEngine: Error Code 1: The engine plan file is generated on an incompatible "
        "device, expecting compute 8.6 got compute 8.0, please rebuild.",
        Reason.ACCELERATOR_MISMATCH,
        False,
    ),
    (
        "The engine plan file is not compatible with this version of TensorRT, expecting library version 10.14.1 got "
        "10.13.3, please rebuild.",
        Reason.TOOLCHAIN_MISMATCH,
        False,
    ),
    ("Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed.", Reason.TOOLCHAIN_MISMATCH, False),
    ("RuntimeError: Failed to deserialize cuda engine", Reason.TOOLCHAIN_MISMATCH, False),
    ("[TensorRT-LLM][ERROR] Assertion failed: d == a + length (...)", Reason.TOOLCHAIN_MISMATCH, False),
    ("Tensor names in engine are not the same as expected, ...", Reason.TOOLCHAIN_MISMATCH, False),
    ("Assertion failed: MPI size 1 != TP size 2 * PP size 1", Reason.ACCELERATOR_MISMATCH, False),
    (
        "Assertion failed: maxTokensInPagedKvCache must be large enough to process at least 1 sequence to completion "
        "(32 vs 64)",
        Reason.DOES_NOT_FIT,
        False,
    ),
    ("CUDA runtime error in cudaMallocAsync(ptr, n, mStream->get()): out of memory", Reason.OUT_OF_MEMORY, True),
    ("Unable to initialize shared memory key 'triton_python_backend_shm_region_1' to...", Reason.BUILD_FAILED, True),
    (
        "[TRT] [E] [virtualMemoryBuffer.cpp::resizePhysical::151] Error Code 2: OutOfMemory (Requested size was "
        "16654532608 bytes.)",
        Reason.OUT_OF_MEMORY,
        True,
    ),
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", Reason.OUT_OF_MEMORY, True),
    ("RuntimeError: [enforce fail] . DefaultCPUAllocator: can't allocate memory", Reason.OUT_OF_MEMORY, True),
    ("MemoryError: Unable to allocate 1.50 GiB for an array", Reason.OUT_OF_MEMORY, True),
    ("OSError: [Errno 28] No space left on device", Reason.DISK_FULL, True),
    ("RuntimeError: No CUDA GPUs are available", Reason.ACCELERATOR_MISMATCH, True),
    (
        "concurrent.futures.process.BrokenProcessPool: A process in the process pool was terminated abruptly while the "
        "future was running or pending.",
        Reason.OUT_OF_MEMORY,
        True,
    ),
    ("RuntimeError: INT8/INT4 quantization is not supported on SM>=100.", Reason.UNSUPPORTED_RECIPE, False),
    ("trtllm-build: error: unrecognized arguments: --tp_size 2", Reason.TOOLCHAIN_MISMATCH, False),
    ("trtllm-build: error: argument --gemm_plugin: invalid choice: 'x'", Reason.TOOLCHAIN_MISMATCH, False),
]


@pytest.mark.parametrize(("line", "reason", "retryable"), SAID, ids=[line[:40] for line, _, _ in SAID])
def test_a_known_line_becomes_a_reason_with_a_remedy(line: str, reason: Reason, retryable: bool) -> None:
    failure = make_failure("trtllm-build", 1, ("Traceback (most recent call last):", line, "AssertionError: see above"))
    assert (failure.reason, failure.retryable) == (reason, retryable)
    assert failure.message.startswith('trtllm-build says "')
    assert line[:40] in failure.message
    assert len(failure.message) > len(line[:300]) + 40  # the remedy


def test_every_known_failure_has_a_line_that_shows_it() -> None:
    shown = {known for known in KNOWN if any(known.pattern.search(line) for line, _, _ in SAID)}
    unshown = {"no kernel image is available", "Unsupported model architecture", "Couldn't find a dataset"}
    assert {known.pattern.pattern for known in KNOWN} - {known.pattern.pattern for known in shown} == {
        known.pattern.pattern for known in KNOWN if any(known.pattern.pattern.startswith(words) for words in unshown)
    }


@pytest.mark.parametrize("code", [137, -9])
def test_a_tool_that_was_killed_ran_out_of_memory(code: int) -> None:
    failure = make_failure("trtllm-build", code, ("[TRT] [I] Detected 13 inputs",))
    assert isinstance(failure, HostMemoryFull)
    assert failure.reason is Reason.OUT_OF_MEMORY
    assert "exit 137" in failure.message


def test_a_warning_of_the_gpus_memory_is_not_why_a_tool_was_killed() -> None:
    line = "[TRT] [W] Error Code 2: OutOfMemory (Requested size was 9 bytes.), trying another kernel"
    killed, ended = (make_failure("trtllm-build", code, (line,)) for code in (137, 1))
    assert isinstance(killed, HostMemoryFull)
    assert "the container ran out of memory" in killed.message
    assert not isinstance(ended, HostMemoryFull)
    assert "the GPU's memory is full" in ended.message


@pytest.mark.parametrize("line", ["std::bad_alloc", "concurrent.futures.process.BrokenProcessPool: A process in the"])
def test_what_runs_out_in_the_container_is_told_apart_from_the_gpu(line: str) -> None:
    assert isinstance(make_failure("trtllm-build", 1, (line,)), HostMemoryFull)


@pytest.mark.parametrize(
    "line",
    [
        "ImportError: libcuda.so.1: cannot open shared object file: No such file or directory",
        "pynvml.NVMLError_LibraryNotFound: NVML Shared Library Not Found",
        "RuntimeError: Found no NVIDIA driver on your system.",
    ],
)
def test_a_tool_that_wants_a_driver_says_so_in_a_class_of_its_own(line: str) -> None:
    assert isinstance(make_failure("python3", 1, ("Traceback (most recent call last):", line)), DriverMissing)


def test_a_kill_in_the_middle_of_other_trouble_is_that_trouble() -> None:
    failure = make_failure("trtllm-build", 137, ("OSError: [Errno 28] No space left on device",))
    assert failure.reason is Reason.DISK_FULL


@pytest.mark.parametrize("code", [143, -15])
def test_a_tool_that_was_ended_from_outside_is_tried_again(code: int) -> None:
    failure = make_failure("trtllm-build", code, ())
    assert (failure.reason, failure.retryable) == (Reason.BUILD_FAILED, True)
    assert "ended from outside" in failure.message


def test_warnings_of_memory_long_ago_are_not_the_cause() -> None:
    lines = ("[TRT] [E] Error Code 2: OutOfMemory (no further information)", *["[TRT] [I] going on"] * LAST_LINES)
    failure = make_failure("trtllm-build", 1, (*lines, "ValueError: something new"))
    assert failure.reason is Reason.BUILD_FAILED
    assert 'saying "ValueError: something new"' in failure.message


def test_a_tool_without_a_word() -> None:
    assert "exit 3 without a word" in make_failure("convert_checkpoint.py", 3, ("", "  ")).message


@given(st.integers(-64, 255), st.lists(st.text(max_size=2000), max_size=80))
def test_whatever_it_says_there_is_one_short_sentence(code: int, lines: list[str]) -> None:
    failure = make_failure("trtllm-build", code, lines)
    assert isinstance(failure, Retryable | Terminal)
    assert "\n" not in failure.message
    assert 20 < len(failure.message) < 800
