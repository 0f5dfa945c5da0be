"""The builder's two Jobs, end to end: real processes, real object store, real exchange, a scripted operator."""

from __future__ import annotations

from pathlib import Path

import pytest
from hotstart.engines.manifest import MANIFEST_NAME, parse_manifest
from hotstart.exchange.messages import BuildPhase

from tests.support.tiny_checkpoint import write_tiny_checkpoint

pytestmark = pytest.mark.integration


@pytest.fixture
def tiny(builder_jobs, tmp_path: Path):
    """Jobs on the tiny checkpoint in two shards."""
    folder = write_tiny_checkpoint(tmp_path / "tiny", shards=2, dtype="bfloat16")
    builder_jobs.upload(folder)
    return builder_jobs


async def test_a_checkpoint_becomes_an_engine_in_the_store(tiny) -> None:
    code, inspected = tiny.inspect()
    assert code == 0
    assert inspected["architecture"] == "LlamaForCausalLM"
    assert inspected["parameters"] == 106_816
    builder = tiny.build(inspected)
    operator = tiny.operator(builder)
    report = await operator.publish()
    assert report.phase is BuildPhase.UPLOADED, report.failure
    assert builder.wait() == (0, {})
    text = tiny.engines.get_manifest(operator.prefix)
    assert text is not None
    manifest = parse_manifest(text, key=builder.engine_key)
    assert {file.path for file in manifest.files} >= {
        "model.bin",
        "config.json",
        "vocabulary.json",
        "tokenizer.json",
        "engine.json",
    }
    assert tiny.store.keys(tiny.engine_bucket) == sorted(
        operator.prefix + path for path in (*(file.path for file in manifest.files), MANIFEST_NAME)
    )
