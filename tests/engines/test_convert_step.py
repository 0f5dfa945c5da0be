"""``convert`` in one container, ``build`` in the next: what is handed over, and what is not."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

import pytest
from hotstart.engines.builder.conversion import PARTIAL
from hotstart.engines.builder.receipt import CHECKPOINT, FILES, RECEIPT
from hotstart.engines.manifest import parse_manifest
from hotstart.exchange.messages import BuildPhase

from tests.support.pod import until
from tests.support.tiny_checkpoint import write_tiny_checkpoint

pytestmark = pytest.mark.integration


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """The scratch volume that both containers mount."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.fixture
def tiny(builder_jobs, shared: Path, tmp_path: Path):
    """Jobs on the tiny checkpoint whose containers share ``shared``."""
    builder_jobs.upload(write_tiny_checkpoint(tmp_path / "tiny", shards=2, dtype="bfloat16"))
    places = {"HOTSTART_SCRATCH": str(shared), "HOTSTART_CONVERTED": str(shared / "converted")}
    return builder_jobs.with_(environment=places)


async def test_the_build_takes_over_what_was_converted(tiny, shared: Path) -> None:
    _, inspected = tiny.inspect()
    assert tiny.convert(inspected) == (0, {})
    assert {path.name for path in (shared / "converted").iterdir()} == {RECEIPT, FILES, CHECKPOINT}
    tiny.store.client().delete_object(Bucket=tiny.bucket, Key="model/config.json")  # nobody reads it again
    builder = tiny.build(inspected, process=True)
    operator = tiny.operator(builder)
    report = await operator.publish()
    assert report.phase is BuildPhase.UPLOADED, report.failure
    assert await builder.wait() == (0, {})
    seen = [report.phase for report in operator.reports]
    assert BuildPhase.DOWNLOADING not in seen
    assert BuildPhase.CONVERTING not in seen
    manifest = parse_manifest(tiny.engines.get_manifest(operator.prefix) or "", key=builder.engine_key)
    assert manifest.verification is not None
    assert manifest.verification.agreed == manifest.verification.compared > 0


def test_the_checkpoint_answers_without_the_gpu(tiny, shared: Path) -> None:
    _, inspected = tiny.inspect()
    assert tiny.convert(inspected) == (0, {})
    assert len(list((shared / "expectations").iterdir())) == 1


def test_a_second_conversion_has_nothing_to_do(tiny, shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, inspected = tiny.inspect()
    assert tiny.convert(inspected) == (0, {})
    receipt = (shared / "converted" / RECEIPT).stat().st_ino
    with caplog.at_level(logging.INFO):
        assert tiny.convert(inspected) == (0, {})
    assert "conversion taken over" in caplog.text
    assert (shared / "converted" / RECEIPT).stat().st_ino == receipt


async def test_a_damaged_conversion_is_made_again(tiny, shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, inspected = tiny.inspect()
    assert tiny.convert(inspected) == (0, {})
    weights = shared / "converted" / FILES / "model.bin"
    os.truncate(weights, weights.stat().st_size // 2)
    builder = tiny.build(inspected)
    operator = tiny.operator(builder)
    report = await operator.publish()
    assert report.phase is BuildPhase.UPLOADED, report.failure
    assert "model.bin is not what was written" in caplog.text
    assert await builder.wait() == (0, {})


async def test_a_conversion_that_was_killed_leaves_nothing_to_take_over(tiny, shared: Path) -> None:
    _, inspected = tiny.inspect()
    process = tiny.start_convert(inspected)

    async def downloading() -> bool:
        return any(shared.glob(f"converted{PARTIAL}*/{CHECKPOINT}/*.safetensors"))

    await until(downloading, "a partial conversion")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (shared / "converted").exists()
    assert tiny.convert(inspected) == (0, {})
    assert (shared / "converted" / RECEIPT).is_file()
    assert not list(shared.glob(f"converted{PARTIAL}*"))


def test_a_failed_conversion_says_why_and_leaves_nothing(tiny, shared: Path, tmp_path: Path) -> None:
    _, inspected = tiny.inspect()
    tiny.upload(write_tiny_checkpoint(tmp_path / "newer", shards=2, dtype="bfloat16", seed=1))
    code, said = tiny.convert(inspected)
    assert (code, said["failure"]["reason"]) == (64, "CheckpointChanged")
    assert list(shared.iterdir()) == []


def test_a_conversion_without_a_place_to_leave_it_is_refused(tiny) -> None:
    _, inspected = tiny.inspect()
    jobs = tiny.with_(environment=tiny.environment | {"HOTSTART_CONVERTED": ""})
    code, said = jobs.convert(inspected)
    assert (code, said["failure"]["reason"]) == (64, "InvalidSpec")
    assert "HOTSTART_CONVERTED is not set" in said["failure"]["message"]
    nowhere = tiny.with_(environment=tiny.environment | {"HOTSTART_CONVERTED": "/nowhere/converted"})
    assert "/nowhere is no folder" in nowhere.convert(inspected)[1]["failure"]["message"]
