"""The builder's two Jobs, end to end: real processes, real object store, real exchange, a scripted operator."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hotstart.engines.builder.conversion import convert
from hotstart.engines.builder.log_tail import LogTail
from hotstart.engines.builder.state import BuildState
from hotstart.engines.errors import Reason, Retryable
from hotstart.engines.manifest import MANIFEST_NAME, parse_manifest
from hotstart.engines.runtimes.ctranslate2 import CTranslate2
from hotstart.engines.verify.expect import Expectation
from hotstart.exchange.client import ExchangeFailed
from hotstart.exchange.messages import BuildPhase, BuildRequest, PromptFormat, UploadPart
from hotstart.exchange.signing import make_signing_key

from tests.support.scripted_operator import NAMESPACE_UID
from tests.support.tiny_checkpoint import make_tiny_weights, write_tiny_checkpoint, write_tiny_gguf

pytestmark = pytest.mark.integration

ENGINE_FILES = {"model.bin", "config.json", "vocabulary.json", "tokenizer.json", "engine.json", "golden.json"}


@pytest.fixture
def tiny(builder_jobs, tmp_path: Path):
    """Jobs on the tiny checkpoint in two shards."""
    builder_jobs.upload(write_tiny_checkpoint(tmp_path / "tiny", shards=2, dtype="bfloat16"))
    return builder_jobs


async def test_a_checkpoint_becomes_an_engine_in_the_store(tiny) -> None:
    code, inspected = tiny.inspect(process=True)
    assert code == 0
    assert inspected["architecture"] == "LlamaForCausalLM"
    assert inspected["format"] == "safetensors"
    assert inspected["parameters"] == 106_816
    assert inspected["files"] == 7
    assert inspected["facts"]["kvHeads"] == 2
    assert not any(tiny.folder.glob("scratch-*/*"))
    builder = tiny.build(inspected, process=True)
    operator = tiny.operator(builder)
    report = await operator.publish()
    assert report.phase is BuildPhase.UPLOADED, report.failure
    assert await builder.wait() == (0, {})
    text = tiny.engines.get_manifest(operator.prefix)
    manifest = parse_manifest(text or "", key=builder.engine_key)
    assert {file.path for file in manifest.files} == ENGINE_FILES
    assert manifest.tokenizer_digest == inspected["tokenizerDigest"]
    assert manifest.facts["parameters"] == inspected["parameters"]
    assert manifest.verification is not None
    assert manifest.verification.positions == 200
    assert manifest.verification.agreed == manifest.verification.compared > 0
    stored = [key for key in tiny.store.keys(tiny.engine_bucket) if key.startswith("engines/")]
    assert stored == sorted(operator.prefix + n for n in (*ENGINE_FILES, MANIFEST_NAME))
    percents = [seen.percent for seen in operator.reports]
    assert percents == sorted(percents)
    assert report.percent == 100
    assert [path.name for path in tiny.folder.glob("scratch-*/*")] == ["expectations"]


async def test_what_a_checkpoint_answers_is_kept_for_its_next_engine(tiny, caplog) -> None:
    caplog.set_level("INFO", "hotstart")
    client, bucket = tiny.store.client(), tiny.engine_bucket

    async def build(quantization: str) -> tuple[str, bytes]:
        """What the log says of the expectation, and what is kept."""
        caplog.clear()
        jobs = tiny.with_(recipe=replace(tiny.recipe, quantization=quantization))
        builder = jobs.build(jobs.inspect()[1])
        report = await jobs.operator(builder).publish()
        assert report.phase is BuildPhase.UPLOADED, report.failure
        assert await builder.wait() == (0, {})
        [key] = [key for key in tiny.store.keys(bucket) if key.startswith(f"expectations/{NAMESPACE_UID}/")]
        return caplog.text, client.get_object(Bucket=bucket, Key=key)["Body"].read()

    said, kept = await build("int8")
    assert "none in the store what=expectations" in said and "expectation computed" in said
    said, same = await build("float32")
    assert "expectation recalled" in said and "expectation computed" not in said
    assert same == kept
    [key] = [key for key in tiny.store.keys(bucket) if key.startswith("expectations/")]
    damaged = kept.replace(b'"spread":', b'"spread":1')
    assert damaged != kept
    client.put_object(Bucket=bucket, Key=key, Body=damaged)
    said, anew = await build("int8")
    assert "expectation unreadable" in said and "its sha256 differs" in said and "expectation computed" in said
    assert Expectation.from_json(anew.decode()).tokens == Expectation.from_json(kept.decode()).tokens


async def test_a_gguf_named_by_its_file_is_built_too(builder_jobs, tmp_path: Path) -> None:
    (tmp_path / "gguf").mkdir()
    write_tiny_gguf(tmp_path / "gguf" / "tiny.gguf")
    write_tiny_gguf(tmp_path / "gguf" / "other.gguf", seed=1)
    builder_jobs.upload(tmp_path / "gguf")
    code, refused = builder_jobs.inspect()
    assert (code, refused["failure"]["reason"]) == (64, "CheckpointIncomplete")
    assert "name one of them" in refused["failure"]["message"]
    jobs = builder_jobs.with_(uri=f"{builder_jobs.uri}tiny.gguf")
    code, inspected = jobs.inspect()
    assert (code, inspected["format"], inspected["files"]) == (0, "gguf", 1)
    builder = jobs.build(inspected)
    report = await jobs.operator(builder).publish()
    assert report.phase is BuildPhase.UPLOADED, report.failure
    assert await builder.wait() == (0, {})


async def test_a_new_operator_goes_on_with_a_running_upload(tiny) -> None:
    _, inspected = tiny.inspect()
    builder = tiny.build(inspected)
    first = tiny.operator(builder)
    report = await first.run(until=lambda r: any(file.upload_id for file in r.files))
    begun = {file.path: file.upload_id for file in report.files}
    second = tiny.operator(builder, epoch=20)
    report = await second.publish()
    assert report.phase is BuildPhase.UPLOADED, report.failure
    assert {file.path: file.upload_id for file in report.files} == begun
    assert await builder.wait() == (0, {})


async def test_a_builder_killed_in_its_upload_leaves_no_engine_and_the_next_one_makes_it(tiny) -> None:
    _, inspected = tiny.inspect()
    killed = tiny.build(inspected, process=True)
    operator = tiny.operator(killed)
    await operator.run(until=lambda r: any(file.etags for file in r.files))
    killed.process.send_signal(signal.SIGKILL)
    killed.process.wait()
    assert tiny.engines.get_manifest(operator.prefix) is None
    left = tiny.engines.list_uploads(operator.prefix)
    assert left
    for upload in left:
        tiny.engines.abort_upload(upload.object_key, upload.upload_id)
    again = tiny.build(inspected)
    report = await tiny.operator(again).publish()
    assert report.phase is BuildPhase.UPLOADED, report.failure
    assert await again.wait() == (0, {})
    assert tiny.engines.get_manifest(operator.prefix) is not None


async def test_two_builders_of_one_engine_agree(tiny) -> None:
    _, inspected = tiny.inspect()
    builders = [tiny.build(inspected), tiny.build(inspected)]
    for builder in builders:
        report = await tiny.operator(builder).publish()
        assert report.phase is BuildPhase.UPLOADED, report.failure
        assert await builder.wait() == (0, {})


async def test_a_part_whose_url_is_refused_is_asked_for_again(tiny) -> None:
    spoilt: set[tuple[str, int]] = set()

    def spoil_first(part: UploadPart) -> UploadPart:
        if (part.path, part.number) in spoilt:
            return part
        spoilt.add((part.path, part.number))
        return part.model_copy(update={"url": part.url.replace("X-Amz-Signature=", "X-Amz-Signature=0")})

    _, inspected = tiny.inspect()
    builder = tiny.build(inspected)
    report = await tiny.operator(builder, spoil=spoil_first).publish()
    assert report.phase is BuildPhase.UPLOADED, report.failure
    assert {path for path, _ in spoilt} == ENGINE_FILES
    assert await builder.wait() == (0, {})


async def test_a_checkpoint_changed_after_inspection_is_not_built(tiny, tmp_path: Path) -> None:
    _, inspected = tiny.inspect()
    tiny.upload(write_tiny_checkpoint(tmp_path / "newer", shards=2, dtype="bfloat16", seed=1))
    report = await expect_failed_build(
        tiny, inspected, 64, "CheckpointChanged", "set checkpoint.revision", process=True
    )
    assert any("checkpoint found" in line for line in report.log_tail)
    assert not any("Traceback" in line for line in report.log_tail)


def test_weights_that_are_not_finite_fail_the_inspection_with_their_tensor(builder_jobs, tmp_path: Path) -> None:
    weights = make_tiny_weights()
    weights["model.layers.0.self_attn.v_proj.weight"][0, 0] = np.nan
    builder_jobs.upload(write_tiny_checkpoint(tmp_path / "nan", weights=weights))
    code, said = builder_jobs.inspect(process=True)
    assert (code, said["failure"]["reason"]) == (64, "CheckpointCorrupt")
    assert "v_proj.weight of model.safetensors holds NaN" in said["failure"]["message"]


async def test_a_secret_that_is_wrong_by_the_time_of_the_build_may_be_mended(tiny) -> None:
    _, inspected = tiny.inspect()
    jobs = tiny.with_(environment={"AWS_SECRET_ACCESS_KEY": "wrong"})
    await expect_failed_build(jobs, inspected, 1, "AccessDenied", "AWS_SECRET_ACCESS_KEY is wrong")


async def test_a_recipe_of_another_release_is_not_built(tiny) -> None:
    _, inspected = tiny.inspect()
    toolchain = replace(tiny.recipe.toolchain, runtime_version="4.0.0")
    jobs = tiny.with_(recipe=replace(tiny.recipe, toolchain=toolchain))
    await expect_failed_build(jobs, inspected, 64, "ToolchainMismatch", "of the same release")


class FullDisk(CTranslate2):
    """Writes its weights to a device that is always full."""

    def convert(self, checkpoint: Any, recipe: Any, folder: Path, progress: Any, source: Path | None = None) -> None:
        (folder / "model.bin").symlink_to("/dev/full")
        super().convert(checkpoint, recipe, folder, progress, source)


def test_a_disk_that_fills_up_while_converting_is_said_with_sizes(tiny, tmp_path: Path) -> None:
    _, inspected = tiny.inspect()
    settings = tiny.build_settings(inspected)
    runtime, folder = FullDisk(), tmp_path / "work"
    folder.mkdir()
    with pytest.raises(Retryable, match="GiB are needed") as failure:
        convert(settings, BuildState("uid", "key", LogTail()), runtime, folder)
    assert failure.value.reason is Reason.DISK_FULL


async def test_a_key_of_something_else_is_not_built(tiny) -> None:
    _, inspected = tiny.inspect()
    builder = tiny.build(inspected, HOTSTART_ENGINE_KEY="0" * 64)
    report = await tiny.operator(builder).publish()
    assert report.failure is not None
    assert report.failure.reason == "InvalidSpec"
    assert (await builder.wait())[0] == 64


async def test_a_cancelled_build_ends(tiny) -> None:
    _, inspected = tiny.inspect()
    builder = tiny.build(inspected, process=True)
    operator = tiny.operator(builder)
    await operator.run(until=lambda r: r.phase is BuildPhase.UPLOADING)
    operator.answers = BuildRequest(cancel=True)
    await operator.run(until=lambda r: True)
    code, said = await builder.wait()
    assert (code, said["failure"]["message"]) == (64, "The operator cancelled the build.")


@pytest.mark.parametrize("until", [BuildPhase.STARTING, BuildPhase.UPLOADING])
async def test_sigterm_ends_a_build_at_once(tiny, until: BuildPhase) -> None:
    _, inspected = tiny.inspect()
    builder = tiny.build(inspected, process=True)
    await tiny.operator(builder).run(until=lambda r: until is BuildPhase.STARTING or r.phase is until)
    builder.process.send_signal(signal.SIGTERM)
    assert await builder.wait() == (143, {})


async def test_a_stranger_is_not_listened_to(tiny) -> None:
    _, inspected = tiny.inspect()
    builder = tiny.build(inspected)
    operator = tiny.operator(builder)
    await operator.run(until=lambda r: True)
    stranger = replace(tiny.operator(builder, epoch=9), key=make_signing_key())
    with pytest.raises(ExchangeFailed, match="answered 401"):
        await stranger.run(until=lambda r: True)
    await operator.publish()
    assert await builder.wait() == (0, {})


def remove(name: str) -> Callable[[Any], None]:
    return lambda jobs: jobs.store.client().delete_object(Bucket=jobs.bucket, Key=f"model/{name}")


def cut(name: str) -> Callable[[Any], None]:
    def spoil(jobs: Any) -> None:
        client = jobs.store.client()
        body = client.get_object(Bucket=jobs.bucket, Key=f"model/{name}")["Body"].read()
        client.put_object(Bucket=jobs.bucket, Key=f"model/{name}", Body=body[: len(body) // 2])

    return spoil


SPOILT = {
    "a shard is missing": (
        remove("model-00002-of-00002.safetensors"),
        64,
        "CheckpointIncomplete",
        "model-00002-of-00002.safetensors is missing",
    ),
    "a shard is cut short": (
        cut("model-00001-of-00002.safetensors"),
        64,
        "CheckpointCorrupt",
        "model-00001-of-00002.safetensors is cut short",
    ),
    "the tokenizer is missing": (remove("tokenizer.json"), 64, "CheckpointIncomplete", "tokenizer.json is missing"),
    "the config is cut short": (cut("config.json"), 64, "CheckpointCorrupt", "config.json is no JSON"),
}


@pytest.mark.parametrize(("spoil", "code", "reason", "words"), SPOILT.values(), ids=SPOILT.keys())
def test_inspection_names_what_is_wrong_with_a_checkpoint(tiny, spoil, code: int, reason: str, words: str) -> None:
    spoil(tiny)
    expect_failed_inspection(tiny, code, reason, words)


def test_inspection_of_a_gguf_cut_short(builder_jobs, tmp_path: Path) -> None:
    (tmp_path / "gguf").mkdir()
    write_tiny_gguf(tmp_path / "gguf" / "tiny.gguf")
    builder_jobs.upload(tmp_path / "gguf")
    cut("tiny.gguf")(builder_jobs)
    expect_failed_inspection(builder_jobs, 64, "CheckpointCorrupt", "tiny.gguf")


def test_inspection_names_what_is_wrong_with_the_store(tiny) -> None:
    elsewhere = tiny.with_(uri="s3://no-such-bucket/model/")
    expect_failed_inspection(elsewhere, 1, "BucketNotFound", "no bucket no-such-bucket")
    expect_failed_inspection(tiny.with_(uri=f"s3://{tiny.bucket}/nowhere/"), 1, "CheckpointNotFound", "nowhere")
    anonymous = tiny.with_(environment={"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""})
    expect_failed_inspection(anonymous, 1, "AccessDenied", "without credentials")
    unknown = tiny.with_(environment={"AWS_ACCESS_KEY_ID": "nobody"})
    expect_failed_inspection(unknown, 1, "AccessDenied", "does not know its AWS_ACCESS_KEY_ID")


def test_inspection_refuses_markers_and_settings_that_cannot_be(tiny) -> None:
    fim = {"prompt_format": PromptFormat.FIM, "fim_prefix": "<PRE>", "fim_suffix": "<SUF>", "fim_middle": "<MID>"}
    jobs = tiny.with_(serving=tiny.serving.model_copy(update=fim))
    expect_failed_inspection(jobs, 64, "MarkersNotInTokenizer", "prefix '<PRE>'")
    jobs = tiny.with_(environment={"HOTSTART_RUNTIME": "vllm"})
    expect_failed_inspection(jobs, 64, "UnsupportedRecipe", "no runtime 'vllm'")
    expect_failed_inspection(tiny.with_(environment={"HOTSTART_SERVING": "{}"}), 64, "InvalidSpec", "HOTSTART_SERVING")


def expect_failed_inspection(jobs: Any, code: int, reason: str, words: str) -> None:
    found, said = jobs.inspect()
    assert said["failure"]["reason"] == reason, said
    assert words in said["failure"]["message"]
    assert said["failure"]["retryable"] is (code == 1)
    assert found == code


async def expect_failed_build(
    jobs: Any, inspected: dict[str, Any], code: int, reason: str, words: str, *, process: bool = False
) -> Any:
    builder = jobs.build(inspected, process=process)
    operator = jobs.operator(builder)
    report = await operator.publish()
    assert report.phase is BuildPhase.FAILED
    assert report.failure is not None
    assert report.failure.reason == reason
    assert words in report.failure.message
    found, said = await builder.wait()
    tail = said["failure"].pop("log_tail")
    assert (found, said) == (code, {"failure": report.failure.model_dump()})
    assert set(tail) <= set(report.log_tail)
    assert jobs.engines.get_manifest(operator.prefix) is None
    return report
