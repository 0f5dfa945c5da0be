"""A build measures what it has verified: by the calibrator beside it, by itself, or not at all, and is published."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hotstart.engines.calibrate.samples import CalibrationFailed
from hotstart.engines.manifest import parse_manifest
from hotstart.exchange.messages import BuildPhase

from tests.support.tiny_checkpoint import write_tiny_checkpoint

pytestmark = pytest.mark.integration


@pytest.fixture
def tiny(builder_jobs, tmp_path: Path):
    """Jobs on the tiny checkpoint."""
    builder_jobs.upload(write_tiny_checkpoint(tmp_path / "tiny"))
    return builder_jobs


@contextmanager
def calibrator(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The sidecar's process, ended as a sidecar is."""
    command = (str(Path(sys.executable).parent / "hotstart-builder"), "calibrate")
    process = subprocess.Popen(command, env={**os.environ, "HOTSTART_CALIBRATOR": str(folder)})
    try:
        yield process
        assert process.poll() is None, "a sidecar that ends by itself is started again"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


async def test_the_calibrator_beside_the_builder_measures_for_it(tiny, tmp_path: Path) -> None:
    _, inspected = tiny.inspect()
    with calibrator(tmp_path / "calibrator"):
        builder = tiny.build(inspected, HOTSTART_CALIBRATOR=str(tmp_path / "calibrator"))
        operator = tiny.operator(builder)
        report = await operator.publish()
        assert report.phase is BuildPhase.UPLOADED, report.failure
        assert await builder.wait() == (0, {})
    manifest = parse_manifest(tiny.engines.get_manifest(operator.prefix) or "", key=builder.engine_key)
    assert manifest.calibration_failure is None
    assert manifest.profile is not None
    assert (manifest.profile.input_tokens, manifest.profile.new_tokens) == (96, 32)
    assert manifest.profile.load[0].concurrency == 1
    assert BuildPhase.CALIBRATING in {seen.phase for seen in operator.reports}


async def test_a_build_without_one_measures_by_itself(tiny) -> None:
    _, inspected = tiny.inspect()
    builder = tiny.build(inspected)
    operator = tiny.operator(builder)
    await operator.publish()
    assert await builder.wait() == (0, {})
    manifest = parse_manifest(tiny.engines.get_manifest(operator.prefix) or "", key=builder.engine_key)
    assert manifest.profile is not None


async def test_a_calibration_that_fails_leaves_a_verified_engine_without_a_profile(
    tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise CalibrationFailed("the machine is on fire")

    monkeypatch.setattr("hotstart.engines.calibrate.calibrate.calibrate", fail)
    _, inspected = tiny.inspect()
    builder = tiny.build(inspected)
    operator = tiny.operator(builder)
    report = await operator.publish()
    assert report.phase is BuildPhase.UPLOADED, report.failure
    assert await builder.wait() == (0, {})
    manifest = parse_manifest(tiny.engines.get_manifest(operator.prefix) or "", key=builder.engine_key)
    assert manifest.verification is not None
    assert (manifest.profile, manifest.calibration_failure) == (None, "the machine is on fire")
