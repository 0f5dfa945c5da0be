"""The ``inspect`` Job: reads the whole checkpoint once, pins its digests and says what network it is."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

from hotstart.engines.builder.prepare import Prepared, prepare
from hotstart.engines.builder.settings import InspectSettings
from hotstart.engines.checkpoints.checkpoint import count_embedding_parameters, count_parameters
from hotstart.engines.runtimes.runtime import check_runtime

log = logging.getLogger(__name__)


def inspect(settings: InspectSettings) -> dict[str, Any]:
    """The result for the termination message.

    Raises:
        EngineError: whatever is wrong with runtime, store or checkpoint.
    """
    check_runtime(settings.runtime)
    with tempfile.TemporaryDirectory(dir=settings.scratch, prefix="inspect-") as folder:
        prepared = prepare(
            settings.checkpoint.open(),
            Path(folder),
            settings.serving,
            on_choice=lambda size: None,
            on_bytes=lambda count: None,
            heads_only=True,
            runtime=settings.runtime,
        )
        result = make_result(prepared)
    log.info("checkpoint inspected digest=%s parameters=%d", result["digest"], result["parameters"])
    return result


def make_result(prepared: Prepared) -> dict[str, Any]:
    """Plain JSON. Pure."""
    facts = prepared.checkpoint.facts
    return {
        "digest": prepared.checkpoint_digest,
        "tokenizerDigest": prepared.tokenizer_digest,
        "architecture": facts.architecture,
        "format": prepared.checkpoint.format,
        "parameters": count_parameters(facts),
        "embeddingParameters": count_embedding_parameters(facts),
        "sizeBytes": prepared.choice.size,
        "files": len(prepared.choice.files),
        "facts": facts.to_json(),
    }
