"""What can go wrong between a checkpoint and its engine: one exception tree, with the words that conditions use.

Whoever raises says cause and remedy in one or two sentences: the text becomes the message of a condition as it stands.
"""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """One word for each cause; the operator's conditions, its events and the runbook use the same."""

    CHECKPOINT_NOT_FOUND = "CheckpointNotFound"
    CHECKPOINT_INCOMPLETE = "CheckpointIncomplete"  # a shard, the tokenizer or config.json is missing
    CHECKPOINT_CORRUPT = "CheckpointCorrupt"  # cut short, malformed, other shapes than said, NaN or Inf
    CHECKPOINT_CHANGED = "CheckpointChanged"
    BUCKET_NOT_FOUND = "BucketNotFound"
    ACCESS_DENIED = "AccessDenied"
    STORE_UNREACHABLE = "StoreUnreachable"
    STORE_CONFLICT = "StoreConflict"  # another engine stands under the same key
    UNSUPPORTED_ARCHITECTURE = "UnsupportedArchitecture"
    UNSUPPORTED_RECIPE = "UnsupportedRecipe"
    TOKENIZER_MISMATCH = "TokenizerMismatch"
    MARKERS_NOT_IN_TOKENIZER = "MarkersNotInTokenizer"
    ENGINE_CORRUPT = "EngineCorrupt"  # in the store: other bytes, or other sizes, than its manifest says
    ENGINE_FETCH_FAILED = "EngineFetchFailed"
    VERIFICATION_FAILED = "VerificationFailed"
    DISK_FULL = "DiskFull"
    OUT_OF_MEMORY = "OutOfMemory"  # host or GPU memory ran out while building or loading
    DOES_NOT_FIT = "DoesNotFit"  # the memory plan exceeds the accelerator
    ACCELERATOR_MISMATCH = "AcceleratorMismatch"  # another GPU than the engine is for
    TOOLCHAIN_MISMATCH = "ToolchainMismatch"  # other versions of TensorRT or TensorRT-LLM than the engine is for
    ENGINE_QUARANTINED = "EngineQuarantined"  # failed its verification; lifted by an annotation
    INVALID_SPEC = "InvalidSpec"  # the environment of a Job cannot be read
    INSPECTION_FAILED = "InspectionFailed"  # anything unforeseen while inspecting
    BUILD_FAILED = "BuildFailed"  # anything unforeseen while building


class EngineError(Exception):
    """A failure with a ``reason`` and a ``message`` of cause and remedy; raise one of its two subclasses."""

    retryable = False

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class Retryable(EngineError):
    """The same attempt may succeed later without a change of the checkpoint or the spec: a store, a Secret, a disk."""

    retryable = True


class HostMemoryFull(Retryable):
    """The container's memory ran out, though the process that tells of it lives on: the next attempt asks for more."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.OUT_OF_MEMORY, message)


class DriverMissing(Retryable):
    """A tool wants a GPU's driver, which this container has not: one that is given a GPU has it."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.ACCELERATOR_MISMATCH, message)


class Terminal(EngineError):
    """It fails in the same way until the checkpoint or the spec is changed."""
