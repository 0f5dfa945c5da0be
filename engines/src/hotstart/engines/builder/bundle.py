"""What ``hotstart-builder bundle`` makes: the files of a further tokenizer for an engine that stands in the store.

The tokenizer is no part of the engine's key: the same weights with another one are the same engine, and nothing is
converted or compiled anew. Its golden questions are answered by the checkpoint; the engine is asked them at each load.
"""

from __future__ import annotations

from pathlib import Path

from hotstart.engines.builder.conversion import EXPECTATIONS, fetch_checkpoint
from hotstart.engines.builder.kept import kept_expectation
from hotstart.engines.builder.prepare import Prepared
from hotstart.engines.builder.room import full_disk_errors
from hotstart.engines.builder.settings import ConversionSettings
from hotstart.engines.builder.state import BuildState
from hotstart.engines.runtimes.engine_json import ENGINE_JSON, TOKENIZER_JSON, make_engine_json
from hotstart.exchange.messages import BuildPhase


def make_bundle(settings: ConversionSettings, state: BuildState, work: Path, bundle: Path) -> Prepared:
    """Fills ``bundle`` with the tokenizer, the first and last tokens by it, and golden questions.

    ``work`` is an empty folder.

    Raises:
        EngineError: the checkpoint, its tokenizer or the disk.
    """
    from hotstart.engines.verify.verify import Subject, write_goldens  # only here: the reference network is large

    prepared = fetch_checkpoint(settings, state, work)
    state.enter(BuildPhase.VERIFYING)
    with full_disk_errors(bundle, 0):
        (bundle / TOKENIZER_JSON).write_bytes(prepared.checkpoint.tokenizer_json)
        (bundle / ENGINE_JSON).write_text(make_engine_json(prepared.checkpoint, settings.recipe))
        digests = (prepared.checkpoint_digest, prepared.tokenizer_digest)
        subject = Subject(prepared.checkpoint, *digests, settings.recipe, bundle, prepared.check_unchanged)
        with kept_expectation(state, prepared, settings.scratch / EXPECTATIONS):
            write_goldens(subject, settings.scratch / EXPECTATIONS, state.set_share)
    prepared.check_unchanged()
    return prepared
