"""`hotstart-engine` as a person runs it: on tiny checkpoints, in this process, exit codes and files looked at."""

from __future__ import annotations

import errno
import json
import os
import pty
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hotstart.cli.cli import EXIT_RETRYABLE, EXIT_TERMINAL, main
from hotstart.cli.inputs import CHECKS, read_recipe, rule_messages
from hotstart.cli.output import lines_of
from hotstart.engines.errors import EngineError, Terminal
from hotstart.engines.key import make_key

from tests.support.object_store import ObjectStore
from tests.support.tiny_checkpoint import write_tiny_checkpoint
from tests.support.tiny_mpt import REPLIT, make_mpt_config, write_tiny_mpt

CPU = "runtime: ctranslate2\nquantization: float32\nlimits: {inputTokens: 96, sequenceTokens: 128}\n"
GPU = (
    "runtime: tensorrt_llm\nlimits: {batchSize: 8, inputTokens: 96, sequenceTokens: 128}\n"
    "accelerator: {product: NVIDIA-H100-80GB-HBM3}\n"
)
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    write_tiny_checkpoint(folder)
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(CPU)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, dict[str, Any]]:
    """Exit code and the JSON on stdout."""
    capsys.readouterr()
    code = main([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("runtime: ctranslate2\nquantization: fp8", "quantization-fits-runtime"),
        ("runtime: ctranslate2\ndtype: float16", "dtype-fits-runtime"),
        ("runtime: ctranslate2\ntensorParallel: 2", "tensor-parallel-fits-runtime"),
        ("runtime: tensorrt_llm", "accelerator-required"),
        ("runtime: ctranslate2\nrebuild: Refit", "refit-fits-engine"),
        ("runtime: ctranslate2\naccelerator: {product: x}", "accelerator-forbidden"),
        (f"{GPU}tensorParallel: 2".replace("}\ntensor", ", migProfile: 1g.10gb}\ntensor"), "mig-is-one-gpu"),
        ("runtime: ctranslate2\nlimits: {inputTokens: 9, sequenceTokens: 9}", "input-shorter-than-sequence"),
    ],
)
def test_a_recipe_is_refused_by_the_sentence_of_the_api_server(tmp_path: Path, text: str, rule: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(EngineError) as refused:
        read_recipe(path)
    assert rule_messages()[rule] in refused.value.message


def test_every_rule_of_the_api_is_checked_here_too() -> None:
    assert set(CHECKS) == set(rule_messages())


@pytest.mark.parametrize("name", ["demo", "full", "h100-replit", "minimal"])
def test_the_examples_are_recipes(name: str) -> None:
    assert read_recipe(EXAMPLES / f"{name}.yaml").engine.runtime


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("runtime: ctranslate2\nquantisation: int8", "quantisation"),
        ("[1]", "no mapping"),
        ("", "no mapping"),
        ("a: [", "no YAML"),
        ("[" * 3000, "no YAML"),
        ("a: !!timestamp 2023-13-45", "no YAML"),
        ("runtime: ctranslate2\n---\nruntime: ctranslate2", "2 documents"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    code, result = run(capsys, "key", checkpoint, "--recipe", path)
    assert code == EXIT_TERMINAL
    assert result["failure"]["reason"] == "InvalidSpec"
    assert said in result["failure"]["message"]
    assert str(path) in result["failure"]["message"]


MODEL = """apiVersion: hotstart.dev/v1alpha1
kind: CompletionModel
metadata: {name: tiny}
spec:
  checkpoint: {uri: 's3://nowhere/', revision: 2023-10-10}
  engine: {runtime: ctranslate2, quantization: int8}
"""
SECRET = "apiVersion: v1\nkind: Secret\nmetadata: {name: models-reader}\n"


@pytest.mark.parametrize("text", [MODEL, f"{SECRET}---\n{MODEL}", f"---\n{MODEL}---\n{SECRET}", f"{MODEL}---\n"])
def test_a_file_is_read_as_kubectl_reads_it(tmp_path: Path, text: str) -> None:
    """A date is text, and the model may stand among other objects."""
    path = tmp_path / "model.yaml"
    path.write_text(text)
    assert read_recipe(path).checkpoint.revision == "2023-10-10"
    path.write_text(text.replace("2023-10-10", "2023-13-45"))
    assert read_recipe(path).checkpoint.revision == "2023-13-45"


def test_a_misspelt_field_of_a_model_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(MODEL.replace("quantization", "quantisation"))
    with pytest.raises(Terminal, match=r"spec\.engine\.quantisation"):
        read_recipe(path)


def test_inspect_key_and_plan_speak_of_one_engine(
    tmp_path: Path, checkpoint: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model.yaml"
    engine = "".join(f"    {line}\n" for line in CPU.splitlines())
    model.write_text(
        "apiVersion: hotstart.dev/v1alpha1\nkind: CompletionModel\nmetadata: {name: tiny}\nspec:\n"
        f"  checkpoint: {{uri: 's3://nowhere/'}}\n  engine:\n{engine}"
    )
    _, found = run(capsys, "inspect", checkpoint)
    code, key = run(capsys, "key", checkpoint, "--recipe", recipe)
    assert code == 0
    assert key["inputs"]["checkpoint"] == found["digest"]
    assert make_key(key["inputs"]) == key["key"]
    _, plan = run(capsys, "plan", "-f", model, "--checkpoint", checkpoint, "--inspect")
    assert plan["key"] == key["key"]
    assert plan["reuse"].startswith("no engine in")
    assert run(capsys, "build", checkpoint, "--recipe", recipe, "--output", tmp_path / "built")[0] == 0
    _, again = run(capsys, "plan", "-f", model, "--checkpoint", checkpoint, "--inspect")
    assert again["reuse"].endswith("is this engine: nothing is built")
    assert key["key"][:40] in again["reuse"], "it is the one in the cache"
    model.write_text(model.read_text().replace("float32", "int8"))
    _, other = run(capsys, "plan", "-f", model, "--checkpoint", checkpoint, "--inspect")
    assert f"is {key['key'][:40]}: recipe.quantization: float32 -> int8" in other["reuse"]
    model.write_text(model.read_text().replace("int8", "float32"))
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    (checkpoint / "tokenizer.json").write_text(json.dumps(tokenizer, indent=7))
    _, retokenized = run(capsys, "plan", "-f", model, "--checkpoint", checkpoint, "--inspect")
    assert "with another tokenizer" in retokenized["reuse"]
    _, rough = run(capsys, "plan", "-f", model, "--checkpoint", checkpoint)
    assert "key" not in rough
    assert any("--inspect" in why for why in rough["unknown"])


def test_the_plan_of_replit_has_the_command_and_the_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its exact config; the weights are not opened by a plan that does not inspect."""
    folder = tmp_path / "replit"
    write_tiny_mpt(folder)
    (folder / "config.json").write_text(json.dumps(make_mpt_config(REPLIT, "bfloat16")))
    code, plan = run(capsys, "plan", "-f", EXAMPLES / "h100-replit.yaml", "--checkpoint", folder)
    assert code == 0
    assert plan["parameters"] == 3_322_088_448
    assert any("--max_seq_len 4096" in step for step in plan["steps"])
    assert "KV cache at 128 KiB" in plan["memory"]


def test_an_engine_is_built_verified_and_known_again(
    tmp_path: Path, checkpoint: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = tmp_path / "engines" / "tiny"
    code, built = run(capsys, "build", checkpoint, "--recipe", recipe, "--output", engine)
    assert code == 0
    assert built["verification"]["agreed"] == built["verification"]["compared"] > 0
    assert {"manifest.json", "golden.json", "model.bin", "tokenizer.json"} <= {path.name for path in engine.iterdir()}
    assert sorted(path.name for path in engine.parent.iterdir()) == ["tiny"], "nothing half-done is left beside it"
    before = {path.name: path.read_bytes() for path in engine.iterdir()}

    code, verified = run(capsys, "verify", engine, "--checkpoint", checkpoint)
    assert code == 0
    assert verified["verification"]["compared"] == built["verification"]["compared"]
    assert {path.name: path.read_bytes() for path in engine.iterdir()} == before

    write_tiny_checkpoint(tmp_path / "other", seed=5)
    code, result = run(capsys, "verify", engine, "--checkpoint", tmp_path / "other")
    assert (code, result["failure"]["reason"]) == (EXIT_TERMINAL, "CheckpointChanged")

    code, result = run(capsys, "build", checkpoint, "--recipe", recipe, "--output", engine)
    assert (code, result["failure"]["reason"]) == (EXIT_TERMINAL, "InvalidSpec")
    assert {path.name: path.read_bytes() for path in engine.iterdir()} == before

    code, result = run(capsys, "calibrate", engine)
    assert code == 0
    assert result["profile"]["lone"]

    (engine / "model.bin").write_bytes(before["model.bin"][:-1] + b"x")
    code, result = run(capsys, "calibrate", engine)
    assert (code, result["failure"]["reason"]) == (EXIT_TERMINAL, "EngineCorrupt")


def test_convert_writes_a_tensorrt_llm_checkpoint_without_a_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_mpt(tmp_path / "mpt")
    recipe = tmp_path / "gpu.yaml"
    recipe.write_text(f"{GPU}tensorParallel: 2\n")
    output = tmp_path / "converted"
    code, result = run(capsys, "convert", tmp_path / "mpt", "--recipe", recipe, "--output", output)
    assert code == 0
    assert result["files"] == ["config.json", "rank0.safetensors", "rank1.safetensors"]
    config = json.loads((output / "config.json").read_text())
    assert config["architecture"] == "MPTForCausalLM"
    assert config["mapping"]["tp_size"] == 2


def test_an_empty_folder_that_stands_takes_the_engine_and_stays(
    tmp_path: Path, checkpoint: Path, recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is where somebody stands, behind a link, or a mount."""
    here, behind = tmp_path / "here", tmp_path / "behind"
    here.mkdir()
    behind.mkdir()
    (tmp_path / "link").symlink_to("behind")
    monkeypatch.chdir(here)
    for named, folder in ((".", here), (tmp_path / "link", behind)):
        inode = folder.stat().st_ino
        assert run(capsys, "build", checkpoint, "--recipe", recipe, "--output", named)[0] == 0
        assert folder.stat().st_ino == inode
        names = {path.name for path in folder.iterdir()}
        assert {"manifest.json", "golden.json", "model.bin"} <= names
        assert not any(name.startswith(".") for name in names), "nothing half-done is left in it"
    assert (tmp_path / "link").is_symlink()


def test_a_failed_build_leaves_an_empty_folder_empty(
    tmp_path: Path, checkpoint: Path, recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()

    def fail(*told: object) -> None:
        raise OSError(errno.EIO, "Input/output error", "/scratch/x")

    monkeypatch.setattr("hotstart.cli.commands.make_engine", fail)
    code, _ = run(capsys, "build", checkpoint, "--recipe", recipe, "--output", tmp_path / "here")
    assert code == EXIT_TERMINAL
    assert list((tmp_path / "here").iterdir()) == []


def test_an_engine_that_the_cache_does_not_take_is_built_all_the_same(
    tmp_path: Path, checkpoint: Path, recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*told: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/cache/x")

    monkeypatch.setattr("hotstart.cli.commands.copy_engine", fill)
    output = tmp_path / "engine"
    assert main(["build", str(checkpoint), "--recipe", str(recipe), "--output", str(output), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["reused"] is False
    assert "warning: The engine is not kept in" in said.err and "No space left on device" in said.err
    assert (output / "manifest.json").is_file()


def test_what_was_built_is_not_built_again(
    tmp_path: Path, checkpoint: Path, recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, first = run(capsys, "build", checkpoint, "--recipe", recipe, "--output", tmp_path / "first")
    assert first["reused"] is False

    def build(*told: object) -> None:
        raise AssertionError("it is built again")

    with monkeypatch.context() as patched:
        patched.setattr("hotstart.cli.commands.make_engine", build)
        code, second = run(capsys, "build", checkpoint, "--recipe", recipe, "--output", tmp_path / "second")
        assert (code, second["reused"], second["key"]) == (0, True, first["key"])
        one, two = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("first", "second"))
        assert one == two
        (cached,) = (tmp_path / "home" / ".cache" / "hotstart" / "engines").glob("*/model.bin")
        cached.unlink()
        cached.write_bytes(b"spoilt")
        with pytest.raises(AssertionError, match="built again"):
            run(capsys, "build", checkpoint, "--recipe", recipe, "--output", tmp_path / "third")
    code, third = run(capsys, "build", checkpoint, "--recipe", recipe, "--output", tmp_path / "third")
    assert (code, third["reused"]) == (0, False)
    assert cached.read_bytes() != b"spoilt", "the new one has taken its place"


@pytest.mark.parametrize("limits", ["{inputTokens: abc}", "{inputTokens: null}", "{sequenceTokens: [1]}", "7"])
def test_limits_that_are_no_numbers_are_named(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], limits: str
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"runtime: ctranslate2\nlimits: {limits}")
    code, result = run(capsys, "key", checkpoint, "--recipe", path)
    assert (code, result["failure"]["reason"]) == (EXIT_TERMINAL, "InvalidSpec")
    assert "limits" in result["failure"]["message"]


def test_an_output_below_a_file_is_named(
    tmp_path: Path, checkpoint: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    output = tmp_path / "file" / "engine"
    code, result = run(capsys, "build", checkpoint, "--recipe", recipe, "--output", output)
    assert (code, result["failure"]["reason"]) == (EXIT_TERMINAL, "InvalidSpec")
    assert str(tmp_path / "file") in result["failure"]["message"]


def test_a_home_that_cannot_be_written_is_named(
    tmp_path: Path,
    checkpoint: Path,
    recipe: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "no-folder").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "no-folder"))
    code, result = run(capsys, "build", checkpoint, "--recipe", recipe, "--output", tmp_path / "engine")
    assert (code, result["failure"]["reason"]) == (EXIT_TERMINAL, "InvalidSpec")
    assert "no-folder/.cache" in result["failure"]["message"]


def test_a_full_disk_may_be_tried_again(
    tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*told: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/scratch/x")

    monkeypatch.setattr("hotstart.cli.commands.read_recipe", fill)
    code, result = run(capsys, "key", tmp_path, "--recipe", recipe)
    assert (code, result["failure"]["reason"]) == (EXIT_RETRYABLE, "DiskFull")
    assert "/scratch/x" in result["failure"]["message"]


@pytest.mark.parametrize(("named", "said"), [("nowhere", "does not exist"), ("pvc://claim/x", "volume of the cluster")])
def test_a_checkpoint_that_this_machine_does_not_see_is_said_to_be_so(
    recipe: Path, capsys: pytest.CaptureFixture[str], named: str, said: str
) -> None:
    code, result = run(capsys, "key", named, "--recipe", recipe)
    assert code == EXIT_TERMINAL
    assert said in result["failure"]["message"] and "pload" not in result["failure"]["message"]


def test_a_plan_that_cannot_be_carried_out_says_so_by_its_exit_code(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    example = EXAMPLES / "h100-replit.yaml"
    code, plan = run(capsys, "plan", "-f", example, "--checkpoint", tmp_path / "nowhere")
    assert (code, plan["failure"]["reason"]) == (EXIT_TERMINAL, "CheckpointNotFound")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    code, plan = run(capsys, "plan", "-f", example, "--checkpoint", "s3://bucket/folder/")
    assert (code, plan["failure"]["reason"]) == (EXIT_RETRYABLE, "StoreUnreachable")
    folder = tmp_path / "replit"
    write_tiny_mpt(folder)
    large = {**make_mpt_config(REPLIT, "bfloat16"), "n_layers": 900}
    (folder / "config.json").write_text(json.dumps(large))
    code, plan = run(capsys, "plan", "-f", example, "--checkpoint", folder)
    assert code == EXIT_TERMINAL
    assert plan["refused"].startswith("DoesNotFit")


def test_an_engine_that_fails_its_verification_ends_with_64(
    tmp_path: Path, checkpoint: Path, recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tmp_path / "engine"
    assert run(capsys, "build", checkpoint, "--recipe", recipe, "--output", engine)[0] == 0

    def wrong(scorer: object, ids: Sequence[int], positions: Sequence[int]) -> list[int]:
        return [0 for _ in positions]

    monkeypatch.setattr("hotstart.engines.runtimes.ctranslate2_scorer.CTranslate2Scorer.top_tokens", wrong)
    code, result = run(capsys, "verify", engine, "--checkpoint", checkpoint)
    assert (code, result["failure"]["reason"]) == (EXIT_TERMINAL, "VerificationFailed")


def test_a_person_sees_a_bar_that_moves(checkpoint: Path) -> None:
    """On a terminal of its own: phases by name, a share that is done, the result below it and no trace of the bar."""
    main_side, terminal = pty.openpty()
    program = (sys.executable, "-m", "hotstart.cli.cli", "inspect", str(checkpoint))
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=terminal, env=environment, text=True) as process:
        os.close(terminal)
        seen = b""
        while True:
            try:
                block = os.read(main_side, 4096)
            except OSError:  # the other side is closed
                break
            if not block:
                break
            seen += block
        out = process.stdout.read() if process.stdout else ""
    os.close(main_side)
    assert process.returncode == 0
    assert "Downloading" in seen.decode() and "━" in seen.decode()
    assert "digest: " in out and "━" not in out


def test_a_result_with_parts_is_told_line_by_line() -> None:
    value = {"key": "ab", "inputs": {"recipe": {"dtype": "float32", "libraries": [["tensorrt", "10"]]}}, "none": []}
    assert list(lines_of(value)) == [
        "key: ab",
        "inputs:",
        "  recipe:",
        "    dtype: float32",
        "    libraries:",
        "        tensorrt",
        "        10",
        "none:",
    ]


def test_a_failed_conversion_leaves_nothing(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint / "config.json").unlink()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(CPU)
    output = tmp_path / "out" / "engine"
    code, result = run(capsys, "build", checkpoint, "--recipe", recipe, "--output", output)
    assert (code, result["failure"]["reason"]) == (EXIT_TERMINAL, "CheckpointIncomplete")
    assert not output.exists()


def test_a_store_that_does_not_answer_may_be_tried_again(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    code, result = run(capsys, "key", "s3://bucket/folder/", "--recipe", recipe)
    assert (code, result["failure"]["reason"]) == (EXIT_RETRYABLE, "StoreUnreachable")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--keep", "abcdef123456"), "neither a key"),
        (("--keep", "A" * 64), "neither a key"),
        (("--ttl", "a week"), "no duration"),
        (("--store", "bucket"), "s3://BUCKET"),
    ],
)
def test_gc_refuses_what_it_cannot_use_before_it_asks_the_store(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    code, result = run(capsys, "gc", "--store", "s3://bucket", "--endpoint", "http://127.0.0.1:9", *arguments)
    assert (code, result["failure"]["reason"]) == (EXIT_TERMINAL, "InvalidSpec")
    assert said in result["failure"]["message"]


@pytest.mark.integration
def test_gc_deletes_only_what_it_is_told_to(
    object_store: ObjectStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, client = object_store.make_bucket("gc"), object_store.client()
    keys = {name: letter * 64 for name, letter in (("kept", "a"), ("old", "b"), ("elsewhere", "c"))}
    for name, key in keys.items():
        uid = "uid-2" if name == "elsewhere" else "uid-1"
        client.put_object(Bucket=bucket, Key=f"engines/{uid}/{key}/manifest.json", Body=b"{}")
    monkeypatch.setenv("AWS_ENDPOINT_URL", object_store.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", object_store.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", object_store.secret_key)
    command = ("gc", "--store", f"s3://{bucket}", "--namespace-uid", "uid-1", "--keep", keys["kept"])
    _, young = run(capsys, *command, "--delete")
    assert young["bytes"]["Kept"] == 2
    assert young["deleted_bytes"] == 0
    _, dry = run(capsys, *command, "--ttl", "0s")
    assert (dry["bytes"]["Expired"], dry["bytes"]["Foreign"], dry["bytes"]["Used"]) == (2, 2, 2)
    assert f"uid-1 {keys['kept']} 2 bytes Used" in dry["engines"], "the whole key, as --keep takes it"
    code, unknown = run(capsys, *command, "--ttl", "0s", "--delete", "--keep", "d" * 64)
    assert (code, unknown["failure"]["reason"]) == (EXIT_TERMINAL, "InvalidSpec")
    assert len(object_store.keys(bucket)) == 3
    for place in ("timing-caches/uid-1", "expectations/uid-1", "timing-caches/uid-2", "expectations/uid-2"):
        client.put_object(Bucket=bucket, Key=f"{place}/abc", Body=b"123")
    started = [
        client.create_multipart_upload(Bucket=bucket, Key=f"engines/{uid}/{keys['old']}/x")["UploadId"]
        for uid in ("uid-1", "uid-2")
    ]
    monkeypatch.setattr("hotstart.cli.gc.UNFINISHED_SECONDS", -1.0)
    _, dry = run(capsys, *command, "--ttl", "0s")
    assert dry["kept"] == ["timing-caches/uid-1/abc 3 bytes", "expectations/uid-1/abc 3 bytes"]
    assert dry["uploads"] == [f"engines/uid-1/{keys['old']}/x {started[0]}"]
    _, swept = run(capsys, *command, "--ttl", "0s", "--delete")
    assert swept["deleted_bytes"] == 2 + 3 + 3
    left = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
    assert [upload["UploadId"] for upload in left] == started[1:]
    assert object_store.keys(bucket) == [
        f"engines/uid-1/{keys['kept']}/manifest.json",
        f"engines/uid-2/{keys['elsewhere']}/manifest.json",
        "expectations/uid-2/abc",
        "timing-caches/uid-2/abc",
    ]
