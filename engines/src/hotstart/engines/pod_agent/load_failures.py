"""What Triton's refusal of a model or of its first requests means: its words -> reason, sentence, another try or not.

The words of TensorRT and TensorRT-LLM are known by the builder's table (``runtimes/tensorrt_llm/failures``); what to do
about them is another thing in a pod that serves. Pure.
"""

from __future__ import annotations

import re

from hotstart.engines.errors import Reason
from hotstart.engines.pod_agent.failures import (
    ENGINE_LOAD_FAILED,
    VERIFICATION_FAILED,
    WARM_UP_FAILED,
    BringUpFailed,
)
from hotstart.engines.runtimes.tensorrt_llm.failures import KNOWN
from hotstart.engines.triton.completion.names import REPLAY_FAILED

_REPLAY = re.compile(re.escape(REPLAY_FAILED) + r"[^\n]*")
LONGEST_QUOTE = 300  # characters

#: Reason -> what to do, and whether the same load may succeed later.
REMEDIES: dict[Reason, tuple[str, bool]] = {
    Reason.ACCELERATOR_MISMATCH: (
        "The engine is for another GPU than this node's, or for another number of them: check the node's label "
        "nvidia.com/gpu.product against spec.engine.accelerator, and its driver",
        False,
    ),
    Reason.TOOLCHAIN_MISMATCH: (
        "The engine is of another version of TensorRT or TensorRT-LLM than this image: the images that build "
        "and that serve must be of one release (values image.* of the chart)",
        False,
    ),
    Reason.OUT_OF_MEMORY: (
        "The GPU's memory is full: see that nothing else runs on this GPU; a smaller engine needs less (quantization, "
        "limits.batchSize, tensorParallel)",
        True,
    ),
    Reason.DOES_NOT_FIT: (
        "The GPU has too little memory left for the KV cache of one sequence: lower spec.engine.limits.sequenceTokens, "
        "quantize, or raise tensorParallel",
        False,
    ),
    Reason.DISK_FULL: ("The node's disk is full: free some, or give it more ephemeral storage", True),
}
SHARED_MEMORY = re.compile(r"Unable to initialize shared memory key|Bus error")


def make_load_failure(text: str) -> BringUpFailed:
    """The failure for a load that Triton refused with ``text``."""
    return (
        find_replay_failure(text)
        or find_known_failure(text)
        or BringUpFailed(ENGINE_LOAD_FAILED, f"Triton cannot load the engine: {text}", retryable=True)
    )


def make_warm_up_failure(text: str) -> BringUpFailed:
    """The failure for a warm-up request that was refused with ``text``."""
    return find_replay_failure(text) or BringUpFailed(
        WARM_UP_FAILED, f"The loaded engine does not complete: {text}", retryable=True
    )


def find_replay_words(text: str) -> str | None:
    """The sentence that says which golden question was answered otherwise, if one was."""
    replay = _REPLAY.search(text)
    return None if replay is None else replay.group().strip()


def find_replay_failure(text: str) -> BringUpFailed | None:
    """The failure where golden questions were answered otherwise: on this node it will not pass."""
    replay = find_replay_words(text)
    if replay is None:
        return None
    message = f"{replay} It is not served here; it was right where it was built."
    return BringUpFailed(VERIFICATION_FAILED, message, retryable=False)


def find_known_failure(text: str) -> BringUpFailed | None:
    """The failure where the text holds words of the backend that say what is wrong."""
    for line in text.splitlines():
        quoted = " ".join(line.split())[:LONGEST_QUOTE]
        if SHARED_MEMORY.search(line):
            remedy = "Shared memory is full: /dev/shm must be a Memory emptyDir"
            return BringUpFailed(ENGINE_LOAD_FAILED, f'{remedy}. Triton says "{quoted}".', retryable=True)
        for known in KNOWN:
            if known.reason in REMEDIES and known.pattern.search(line):
                remedy, retryable = REMEDIES[known.reason]
                return BringUpFailed(known.reason.value, f'{remedy}. Triton says "{quoted}".', retryable=retryable)
    return None
