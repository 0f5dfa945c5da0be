"""Why a tool of TensorRT-LLM failed: its exit code and last lines -> one of our reasons, with what to do. Pure.

An ordered table of what is known to be said, the more specific first: TensorRT warns of the GPU's memory while it goes
on with other kernels, so only what the last lines hold of a tool that has *ended* counts, and nothing of that kind
where it was killed. Sources: the strings that TensorRT, TensorRT-LLM and CUDA print, as collected from their source and
from public reports.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hotstart.engines.errors import DriverMissing, EngineError, HostMemoryFull, Reason, Retryable, Terminal

LAST_LINES = 60  # of the tool's output that are searched
LONGEST_QUOTE = 300  # characters
KILLED = (137, -signal.SIGKILL)
TERMINATED = (143, -signal.SIGTERM)


@dataclass(frozen=True)
class Known:
    """One known failure: ``pattern`` is searched in a line; ``remedy`` completes the sentence after the quoted line.

    ``error`` is its own class of error, where it has one. ``warning``: a tool may say so and go on, and if it is killed
    later, that is not why.
    """

    pattern: re.Pattern[str]
    reason: Reason
    remedy: str
    retryable: bool = False
    error: Callable[[str], EngineError] | None = None
    warning: bool = False

    def make_error(self, message: str) -> EngineError:
        """The error with this message."""
        if self.error is not None:
            return self.error(message)
        return (Retryable if self.retryable else Terminal)(self.reason, message)


def _known(pattern: str, reason: Reason, remedy: str, *, retryable: bool = False, warning: bool = False) -> Known:
    return Known(re.compile(pattern), reason, remedy, retryable, None, warning)


def _host_memory(pattern: str, what: str) -> Known:
    remedy = f"{what}: {MORE_MEMORY}"
    return Known(re.compile(pattern), Reason.OUT_OF_MEMORY, remedy, retryable=True, error=HostMemoryFull)


def _no_driver(pattern: str, remedy: str) -> Known:
    return Known(re.compile(pattern), Reason.ACCELERATOR_MISMATCH, remedy, retryable=True, error=DriverMissing)


MORE_MEMORY = "give the builder more memory, or build on a node that has more"
NEEDS_LESS = (
    "set engine.quantization, lower engine.limits (batchSize, inputTokens), raise engine.tensorParallel, or choose an "
    "accelerator with more memory"
)
REBUILD = "operator, builder and Triton image must be of one release"

KNOWN: tuple[Known, ...] = (
    _known(
        r"generated on an incompatible device, expecting compute",
        Reason.ACCELERATOR_MISMATCH,
        "the engine is of another GPU: it must be built on engine.accelerator.product",
    ),
    _known(r"not compatible with this version of TensorRT", Reason.TOOLCHAIN_MISMATCH, REBUILD),
    _known(r"stdVersionRead == kSERIALIZATION_VERSION", Reason.TOOLCHAIN_MISMATCH, REBUILD),
    _known(r"Failed to deserialize cuda engine", Reason.TOOLCHAIN_MISMATCH, REBUILD),
    _known(r"Assertion failed: d == a \+ length", Reason.TOOLCHAIN_MISMATCH, REBUILD),
    _known(r"Tensor names in engine are not the same as expected", Reason.TOOLCHAIN_MISMATCH, REBUILD),
    _known(
        r"MPI size \d+ != TP size \d+ \* PP size \d+",
        Reason.ACCELERATOR_MISMATCH,
        "the pod must have as many GPUs as engine.tensorParallel says",
    ),
    _known(r"maxTokensInPagedKvCache must be large enough", Reason.DOES_NOT_FIT, NEEDS_LESS),
    _known(
        r"No space left on device|Disk quota exceeded",
        Reason.DISK_FULL,
        "give the nodes more ephemeral storage",
        retryable=True,
    ),
    _no_driver(
        r"No CUDA GPUs are available|no CUDA-capable device|CUDA driver version is insufficient"
        r"|Found no NVIDIA driver|libcuda\.so|libnvidia-ml\.so|NVML Shared Library Not Found|NVMLError",
        "the container sees no usable GPU: check the node's driver (590 or later for CUDA 13.1) and device plugin",
    ),
    _known(
        r"no kernel image is available for execution|Unsupported SM|unsupported gpu architecture",
        Reason.ACCELERATOR_MISMATCH,
        "TensorRT-LLM has no kernels for this GPU: choose another engine.accelerator.product",
    ),
    _known(r"quantization is not supported on SM", Reason.UNSUPPORTED_RECIPE, "set engine.quantization to none or fp8"),
    _known(
        r"Error Code 2: OutOfMemory|cudaMallocAsync.*out of memory|CUDA out of memory|CUDA error: out of memory"
        r"|Cuda Error in allocate: 2|torch\.OutOfMemoryError",
        Reason.OUT_OF_MEMORY,
        f"the GPU's memory is full: see that nothing else runs on it, {NEEDS_LESS}",
        retryable=True,
        warning=True,
    ),
    _host_memory(
        r"^\s*MemoryError|Cannot allocate memory|std::bad_alloc|DefaultCPUAllocator: can't allocate",
        "the container's memory is full",
    ),
    _host_memory(
        r"BrokenProcessPool|process pool was terminated abruptly|process pool is not usable anymore",
        "the process of a rank was killed, most likely for want of memory in the container",
    ),
    _known(
        r"Unable to initialize shared memory key|Bus error",
        Reason.BUILD_FAILED,
        "shared memory is full: /dev/shm must be a Memory emptyDir",
        retryable=True,
    ),
    _known(
        r"Unsupported model architecture|is not supported in TRT-?LLM|Unrecognized configuration class",
        Reason.UNSUPPORTED_ARCHITECTURE,
        "TensorRT-LLM has no such network: see docs/engines.md for those that it builds",
    ),
    _known(
        r"unrecognized arguments|invalid choice|the following arguments are required",
        Reason.TOOLCHAIN_MISMATCH,
        "this is another version of the tool than the one that the release is written for",
    ),
    _known(
        r"Couldn't find a dataset|offline mode is enabled|LocalEntryNotFoundError|Max retries exceeded with url",
        Reason.BUILD_FAILED,
        "the tool wants something from the internet, which a build never has: please report it",
    ),
)


def lacks_driver(line: str) -> bool:
    """Whether a line says that something wants the driver of a GPU, and there is none."""
    return any(known.error is DriverMissing and known.pattern.search(line) for known in KNOWN)


def make_failure(tool: str, code: int, lines: Sequence[str]) -> EngineError:
    """The error for a tool that ended with ``code`` (negative: a signal) after ``lines``, the last one last."""
    return find_failure(tool, code, lines) or _unknown(tool, code, lines)


def find_failure(tool: str, code: int, lines: Sequence[str]) -> EngineError | None:
    """As ``make_failure``, but None where neither code nor lines are known."""
    last, killed = lines[-LAST_LINES:], code in KILLED
    for known in KNOWN:
        found = next((line for line in reversed(last) if known.pattern.search(line)), None)
        if found is not None and not (killed and known.warning):
            return known.make_error(f"{tool} says {_quote(found)}: {known.remedy}.")
    if killed:
        return HostMemoryFull(f"{tool} was killed (exit 137): the container ran out of memory; {MORE_MEMORY}.")
    if code in TERMINATED:
        return Retryable(Reason.BUILD_FAILED, f"{tool} was ended from outside (exit 143): the build is tried again.")
    return None


def _unknown(tool: str, code: int, lines: Sequence[str]) -> EngineError:
    said = next((line for line in reversed(lines[-LAST_LINES:]) if line.strip()), "")
    quoted = f", saying {_quote(said)}" if said else " without a word"
    return Retryable(Reason.BUILD_FAILED, f"{tool} failed with exit {code}{quoted}. The Job's log has its last lines.")


def _quote(line: str) -> str:
    text = " ".join(line.split())[:LONGEST_QUOTE]
    return f'"{text}"'
