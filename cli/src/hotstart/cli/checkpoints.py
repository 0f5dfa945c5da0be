"""A checkpoint from the command line: read whole for its digests, or only its config for what a plan needs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotstart.engines.builder.inspect import make_result
from hotstart.engines.builder.prepare import Prepared, choose, prepare
from hotstart.engines.builder.settings import CheckpointAccess
from hotstart.engines.builder.state import BuildState
from hotstart.engines.checkpoints.checkpoint import count_embedding_parameters, count_parameters
from hotstart.engines.checkpoints.opening import open_checkpoint
from hotstart.engines.checkpoints.source import download
from hotstart.engines.errors import Reason, Terminal
from hotstart.exchange.messages import BuildPhase, ServingOptions
from hotstart.operator.api import CompletionModel, CompletionModelSpec
from hotstart.operator.api.base import ObjectMeta
from hotstart.operator.api.status import CheckpointStatus
from hotstart.operator.core.checkpoint import read_result
from hotstart.operator.core.jobs import Failure
from hotstart.operator.core.recipe import make_serving_options


@dataclass(frozen=True)
class Inspected:
    """A checkpoint that was read whole: ``result`` as the inspect Job says it, ``status`` as the operator keeps it."""

    prepared: Prepared
    result: dict[str, Any]
    status: CheckpointStatus


@contextmanager
def inspected(
    access: CheckpointAccess, spec: CompletionModelSpec, state: BuildState, *, heads_only: bool
) -> Iterator[Inspected]:
    """The checkpoint read whole, and on disk (of weights only the heads, with ``heads_only``) while the block runs.

    Raises:
        EngineError: whatever is wrong with store or checkpoint.
    """
    done = 0

    def on_choice(size: int) -> None:
        state.checkpoint_bytes = size

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        state.set_share(done / max(state.checkpoint_bytes, 1))

    state.enter(BuildPhase.DOWNLOADING)
    with tempfile.TemporaryDirectory(prefix="hotstart-") as folder:
        prepared = prepare(
            access.open(),
            Path(folder),
            make_serving_options(spec),
            on_choice=on_choice,
            on_bytes=on_bytes,
            heads_only=heads_only,
            runtime=str(spec.engine.runtime),
        )
        result = make_result(prepared)
        yield Inspected(prepared, result, make_status(result, spec))


def make_status(result: dict[str, Any], spec: CompletionModelSpec) -> CheckpointStatus:
    """What the operator makes of an inspection's result. Raises Terminal where it makes nothing of it."""
    model = CompletionModel(metadata=ObjectMeta(name="model"), spec=spec)
    status = read_result(result, model, "")
    if isinstance(status, Failure):
        raise Terminal(Reason.INSPECTION_FAILED, status.message)
    return status


def read_config(access: CheckpointAccess, spec: CompletionModelSpec) -> CheckpointStatus:
    """What the config alone tells; the digest is empty, for the weights were not read.

    Raises:
        EngineError: whatever is wrong with store or checkpoint.
    """
    source = access.open()
    with tempfile.TemporaryDirectory(prefix="hotstart-") as name:
        folder, digests = Path(name), dict[str, str]()
        choice = choose(source, folder, digests)
        if choice.format == "gguf":  # its fields stand at the head of the weights
            download(source, choice.files, folder, on_bytes=lambda count: None, heads_only=True)
        facts = open_checkpoint(folder, choice).facts
        result = {
            "digest": "0" * 64,
            "tokenizerDigest": "0" * 64,
            "architecture": facts.architecture,
            "format": choice.format,
            "parameters": count_parameters(facts),
            "embeddingParameters": count_embedding_parameters(facts),
            "sizeBytes": choice.size,
            "files": len(choice.files),
            "facts": facts.to_json(),
        }
    return make_status(result, spec).model_copy(update={"digest": ""})


def serving_of(spec: CompletionModelSpec) -> ServingOptions:
    """The serving options that an engine is checked and calibrated with."""
    return make_serving_options(spec)
