"""A TensorRT-LLM build from end to end: convert and build as processes, played tools, a real store and exchange.

What is played: ``trtllm-build``, ``nvidia-smi`` and the engine itself (numpy in the GPU's place). What is real: the MPT
conversion, verification, the upload, the timing cache's way through the operator's presigned URLs.
"""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hotstart.engines.builder.conversion import EXPECTATIONS
from hotstart.engines.builder.kept import fetch, keep, kept_timing_cache
from hotstart.engines.builder.log_tail import LogTail
from hotstart.engines.builder.receipt import RECEIPT, parse_receipt
from hotstart.engines.builder.state import BuildState
from hotstart.engines.kept import NEW_TIMING_CACHE, TIMING_CACHE, kept_path, timing_cache_name
from hotstart.engines.manifest import parse_manifest
from hotstart.engines.recipe import EngineLimits
from hotstart.exchange.messages import BuildPhase, BuildRequest, KeptWish
from hotstart.exchange.names import Kept

from tests.engines.test_trtllm_runtime import LLAMA, MPT
from tests.engines.trtllm_world import make_world
from tests.support.pod import until
from tests.support.scripted_operator import NAMESPACE_UID
from tests.support.tiny_checkpoint import write_tiny_checkpoint
from tests.support.tiny_mpt import write_tiny_mpt

pytestmark = pytest.mark.integration
NAME = "ab" * 20
LIMITS = EngineLimits(8, 192, 256)
MPT_OF_JOBS = replace(MPT, limits=LIMITS)
CACHE = kept_path(NAMESPACE_UID, Kept.TIMING_CACHE, timing_cache_name(MPT.toolchain, MPT.platform))
LLAMA_OF_JOBS = replace(LLAMA, limits=LIMITS)


@pytest.fixture
def jobs(builder_jobs: Any, tmp_path: Path) -> Any:
    """Jobs of a tiny MPT checkpoint whose two containers share a scratch volume."""
    checkpoint = write_tiny_mpt(tmp_path / "tiny")
    builder_jobs.upload(checkpoint)
    (tmp_path / "scratch").mkdir()
    environment = make_world(checkpoint=str(checkpoint)) | {
        "HOTSTART_SCRATCH": str(tmp_path / "scratch"),
        "HOTSTART_CONVERTED": str(tmp_path / "scratch" / "converted"),
    }
    return builder_jobs.with_(recipe=MPT_OF_JOBS, environment=environment)


def inspected(jobs: Any) -> dict[str, Any]:
    code, found = jobs.inspect(process=True)
    assert code == 0, found
    return found


async def test_a_checkpoint_becomes_engines_in_two_containers(jobs: Any) -> None:
    found = inspected(jobs)
    assert await jobs.convert_apart(found) == (0, {})
    builder = jobs.build(found, process=True)
    operator = jobs.operator(builder)
    report = await operator.publish()
    assert report.phase is BuildPhase.UPLOADED, report.failure
    assert await builder.wait() == (0, {})
    manifest = parse_manifest(jobs.engines.get_manifest(operator.prefix) or "", key=builder.engine_key)
    files = {file.path for file in manifest.files}
    assert {"rank0.engine", "config.json", "tokenizer.json", "engine.json", "golden.json"} <= files
    assert manifest.verification is not None
    assert manifest.verification.agreed == manifest.verification.compared > 0
    phases = [report.phase for report in operator.reports]
    assert BuildPhase.BUILDING in phases
    assert not {BuildPhase.DOWNLOADING, BuildPhase.CONVERTING} & set(phases)
    percents = [report.percent for report in operator.reports]
    assert percents == sorted(percents)
    kept = jobs.store.client().get_object(Bucket=jobs.engine_bucket, Key=CACHE)["Body"].read()
    assert kept == b"timed "


async def test_a_conversion_that_wants_a_driver_is_left_to_the_container_with_the_gpu(
    jobs: Any, tmp_path: Path
) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "llama")
    jobs = jobs.with_(uri=jobs.uri.replace("model/", "llama/"))
    jobs.store.upload_folder(checkpoint, jobs.bucket, "llama/")
    llama = jobs.with_(recipe=LLAMA_OF_JOBS, environment=jobs.environment | make_world(checkpoint=str(checkpoint)))
    found = inspected(llama)
    without_gpu = llama.with_(environment=llama.environment | make_world(upstream="driver", gpus=""))
    assert await without_gpu.convert_apart(found) == (0, {})
    receipt = parse_receipt((tmp_path / "scratch" / "converted" / RECEIPT).read_text())
    assert (receipt.converted, dict(receipt.files)) == (False, {})
    assert list((tmp_path / "scratch" / EXPECTATIONS).iterdir())  # what needs no driver is done
    builder = llama.build(found, process=True)
    operator = llama.operator(builder)
    report = await operator.publish()
    assert report.phase is BuildPhase.UPLOADED, report.failure
    assert await builder.wait() == (0, {})
    phases = [report.phase for report in operator.reports]
    assert BuildPhase.DOWNLOADING not in phases


async def test_a_conversion_says_how_far_it_is_and_can_be_cancelled(jobs: Any, tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "llama")
    jobs.store.upload_folder(checkpoint, jobs.bucket, "llama/")
    environment = jobs.environment | make_world(upstream="hang")
    llama = jobs.with_(uri=jobs.uri.replace("model/", "llama/"), recipe=LLAMA_OF_JOBS, environment=environment)
    converter = llama.serve_convert(inspected(llama))
    operator = llama.operator(converter)
    begun = await operator.run(until=lambda report: report.phase is BuildPhase.CONVERTING)
    half = await operator.run(until=lambda report: report.eta_seconds is not None)
    assert begun.percent <= half.percent < 50
    operator.answers = BuildRequest(cancel=True)
    await operator.run(until=lambda report: True)
    code, said = await converter.wait()
    assert (code, said["failure"]["reason"]) == (64, "BuildFailed")
    assert "cancelled" in said["failure"]["message"]


async def test_the_next_build_begins_with_the_timing_cache(jobs: Any) -> None:
    jobs.store.client().put_object(Bucket=jobs.engine_bucket, Key=CACHE, Body=b"before ")
    builder = jobs.build(inspected(jobs), process=True)
    report = await jobs.operator(builder).publish()
    assert report.phase is BuildPhase.UPLOADED, report.failure
    assert await builder.wait() == (0, {})
    assert jobs.store.client().get_object(Bucket=jobs.engine_bucket, Key=CACHE)["Body"].read() == b"before timed "


@pytest.mark.parametrize(
    ("what", "code", "reason", "words"),
    [
        ({"trtllm": "die"}, 137, "OutOfMemory", "trtllm-build was killed (exit 137)"),
        ({"gpus": "NVIDIA L4, 8.9, 23034, 590.44.01"}, 64, "AcceleratorMismatch", "sees 1 NVIDIA-L4 (SM 89"),
        ({"llm": "wrong"}, 64, "VerificationFailed", "The engine was built, but"),
        ({"llm": "broken"}, 64, "VerificationFailed", "Failed to deserialize cuda engine"),
    ],
    ids=str,
)
async def test_a_build_that_fails_says_why_and_leaves_no_engine(
    jobs: Any, what: dict[str, str], code: int, reason: str, words: str
) -> None:
    found = inspected(jobs)
    builder = jobs.with_(environment=jobs.environment | make_world(**what)).build(found, process=True)
    operator = jobs.operator(builder)
    report = await operator.publish()
    assert report.failure is not None
    assert report.failure.reason == reason, report.failure
    assert words in report.failure.message
    assert (await builder.wait())[0] == code
    assert jobs.engines.get_manifest(operator.prefix) is None
    if "trtllm" in what:
        assert any("tool said tool=trtllm-build" in line for line in report.log_tail)


@pytest.mark.parametrize("how", ["cancelled", "SIGTERM"])
async def test_a_build_that_is_ended_takes_its_tools_with_it(jobs: Any, tmp_path: Path, how: str) -> None:
    found = inspected(jobs)
    hanging = jobs.with_(environment=jobs.environment | make_world(trtllm="hang"))
    builder = hanging.build(found, process=True)
    operator = hanging.operator(builder)
    await operator.run(until=lambda report: report.phase is BuildPhase.BUILDING and report.wants_kept is None)
    pids: list[int] = []

    async def hangs() -> bool:
        await operator.run(until=lambda report: True)
        pids.extend(int(path.read_text()) for path in tmp_path.rglob("worker.pid") if path.read_text())
        return bool(pids)

    await until(hangs, "the tool's worker")
    if how == "SIGTERM":
        builder.process.send_signal(signal.SIGTERM)
    else:
        operator.answers = BuildRequest(cancel=True)
        await operator.run(until=lambda report: True)
    assert (await builder.wait())[0] == (143 if how == "SIGTERM" else 64)

    async def gone() -> bool:
        stat = Path(f"/proc/{pids[0]}/stat")
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"

    await until(gone, "the worker's end")


class Answers(BuildState):
    """Gives one URL whenever it is asked for one."""

    def __init__(self, url: str) -> None:
        super().__init__("uid", "key", LogTail())
        self._url = url
        self.asked: list[str] = []

    def ask_kept(self, wish: KeptWish, patience: float) -> str:
        self.asked.append(wish.way)
        return self._url


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:9/nobody", "no url", "{missing}"])
@pytest.mark.parametrize("what", Kept)
def test_what_cannot_be_had_fails_nothing(jobs: Any, tmp_path: Path, what: Kept, url: str) -> None:
    place = Answers(url.format(missing=jobs.engines.presign_get("timing-caches/no/such")))
    assert fetch(place, what, NAME, tmp_path / "kept") is False
    assert not (tmp_path / "kept").exists()
    (tmp_path / "new").write_bytes(b"new")
    assert keep(place, what, NAME, tmp_path / "new") is False


@pytest.mark.parametrize(
    ("old", "new", "asked"),
    [(b"same", b"same", ["get"]), (b"same", b"other", ["get", "put"]), (b"same", b"", ["get"]), (None, None, ["get"])],
)
def test_only_a_changed_timing_cache_is_put(
    tmp_path: Path, old: bytes | None, new: bytes | None, asked: list[str]
) -> None:
    state = Answers("no url")
    with kept_timing_cache(state, MPT_OF_JOBS, tmp_path):
        for name, content in ((TIMING_CACHE, old), (NEW_TIMING_CACHE, new)):
            if content is not None:
                (tmp_path / name).write_bytes(content)
    assert state.asked == asked


def test_nothing_is_asked_for_where_there_is_no_operator(tmp_path: Path) -> None:
    state = Answers("no url")
    state.heard = False
    (tmp_path / "kept").write_bytes(b"kept")
    assert fetch(state, Kept.EXPECTATION, NAME, tmp_path / "new") is False
    assert keep(state, Kept.EXPECTATION, NAME, tmp_path / "kept") is False
    assert state.asked == []
    assert state.ask_refit_base({}, patience=3600) is None


def test_an_operator_that_is_silent_is_not_waited_for_long() -> None:
    state = BuildState("uid", "key", LogTail())
    assert state.ask_kept(KeptWish(what=Kept.TIMING_CACHE, name=NAME, way="get"), 0.01) == ""
    assert state.report().wants_kept is None
