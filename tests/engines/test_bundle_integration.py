"""A further tokenizer for an engine that stands: its bundle, by the builder's own process and a real object store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hotstart.engines.manifest import parse_manifest
from hotstart.engines.triton.completion.engine import CTranslate2Engine, read_facts
from hotstart.engines.triton.completion.replay import ReplayFailed, replay
from hotstart.engines.verify.golden import GOLDEN_NAME, read_goldens
from hotstart.exchange.messages import BuildPhase
from tokenizers import Tokenizer

from tests.support.tiny_checkpoint import write_tiny_checkpoint

pytestmark = pytest.mark.integration


def split_words_finer(checkpoint: Path) -> None:
    """The same tokens by the same ids, of which a text now takes more."""
    path = checkpoint / "tokenizer.json"
    value = json.loads(path.read_text())
    value["model"]["merges"] = value["model"]["merges"][:-40]
    path.write_text(json.dumps(value))


def begin_texts(checkpoint: Path) -> None:
    (checkpoint / "tokenizer_config.json").write_text('{"add_bos_token": true}')


@pytest.mark.parametrize(
    ("change", "bos", "words"),
    [(split_words_finer, None, "another tokenizer"), (begin_texts, 0, "computes it wrongly")],
)
async def test_an_engine_is_served_with_a_tokenizer_that_it_was_not_built_with(
    builder_jobs, tmp_path: Path, change: Callable[[Path], None], bos: int | None, words: str
) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny")
    builder_jobs.upload(checkpoint)
    first = builder_jobs.inspect()[1]
    builder = builder_jobs.build(first)
    assert (await builder_jobs.operator(builder).publish()).phase is BuildPhase.UPLOADED
    assert await builder.wait() == (0, {})
    change(checkpoint)
    builder_jobs.upload(checkpoint)
    second = builder_jobs.inspect()[1]
    assert (second["digest"], second["tokenizerDigest"] == first["tokenizerDigest"]) == (first["digest"], False)

    bundler = builder_jobs.build(second, command="bundle", process=True)
    operator = builder_jobs.operator(bundler, bundle=second["tokenizerDigest"])
    report = await operator.publish()
    assert report.phase is BuildPhase.UPLOADED, report.failure
    assert await bundler.wait() == (0, {})
    phases = {seen.phase for seen in operator.reports}
    assert not phases & {BuildPhase.CONVERTING, BuildPhase.BUILDING, BuildPhase.CALIBRATING}

    bucket, client = builder_jobs.engine_bucket, builder_jobs.store.client()
    keys = builder_jobs.store.keys(bucket)
    manifest = parse_manifest(builder_jobs.engines.get_manifest(operator.prefix) or "", key=bundler.engine_key)
    assert {file.path for file in manifest.files} == {"tokenizer.json", "engine.json", GOLDEN_NAME}
    assert manifest.tokenizer_digest == second["tokenizerDigest"]
    engine, bundle = tmp_path / "engine", operator.prefix
    engine.mkdir()
    for key in sorted(keys, key=lambda key: key.startswith(bundle)):  # its files take the place of the engine's
        (engine / key.rpartition("/")[2]).write_bytes(client.get_object(Bucket=bucket, Key=key)["Body"].read())
    facts = read_facts(engine)
    assert facts.bos_id == bos
    served = CTranslate2Engine(engine, facts, inter_threads=1, intra_threads=1)
    tokenizer = Tokenizer.from_file(str(engine / "tokenizer.json"))
    assert replay(engine, tokenizer, facts.bos_id, served) == len(read_goldens(engine)) > 0

    own = next(key for key in keys if key.endswith(GOLDEN_NAME) and not key.startswith(bundle))
    (engine / GOLDEN_NAME).write_bytes(client.get_object(Bucket=bucket, Key=own)["Body"].read())
    with pytest.raises(ReplayFailed, match=words):
        replay(engine, tokenizer, facts.bos_id, served)


async def test_a_tokenizer_that_changed_since_it_was_inspected_is_not_made(builder_jobs, tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny")
    builder_jobs.upload(checkpoint)
    inspected = builder_jobs.inspect()[1]
    split_words_finer(checkpoint)
    builder_jobs.upload(checkpoint)
    bundler = builder_jobs.build(inspected, command="bundle")
    await builder_jobs.operator(bundler, bundle=inspected["tokenizerDigest"]).publish()
    code, said = await bundler.wait()
    assert (code, said["failure"]["reason"]) == (64, "CheckpointChanged")
    assert "The tokenizer of the checkpoint" in said["failure"]["message"]
