"""Which files of a folder are the checkpoint: every listing gives a choice, or says what is missing."""

from __future__ import annotations

import pytest
from hotstart.engines.checkpoints.choose import SAFETENSORS_INDEX as INDEX
from hotstart.engines.checkpoints.choose import (
    TORCH_INDEX,
    Choice,
    FileRole,
    ListedFile,
    choose_files,
    narrow_to_index,
)
from hotstart.engines.checkpoints.places import S3Place, parse_uri
from hotstart.engines.errors import Reason, Terminal

WHERE = "s3://models/code/"
SMALL = ("config.json", "tokenizer.json")


def choose(*names: str, empty: str = "") -> Choice:
    return choose_files(tuple(ListedFile(name, 0 if name == empty else 10) for name in names), where=WHERE)


def names(choice: Choice, role: FileRole) -> list[str]:
    return [chosen.file.name for chosen in choice.files if chosen.role is role]


def test_one_safetensors_file_with_its_config() -> None:
    choice = choose(*SMALL, "model.safetensors", "README.md", "tokenizer_config.json", "generation_config.json")
    assert choice.format == "safetensors"
    assert names(choice, FileRole.CONFIG) == ["config.json", "generation_config.json"]
    assert names(choice, FileRole.TOKENIZER) == ["tokenizer.json", "tokenizer_config.json"]
    assert names(choice, FileRole.WEIGHTS) == ["model.safetensors"]
    assert choice.size == 50
    assert {c.file.name for c in choice.files if not c.in_digest} == {"tokenizer.json", "tokenizer_config.json"}


def test_shards_are_those_of_the_index_and_a_second_copy_of_the_weights_is_left_out() -> None:
    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    choice = choose(*SMALL, INDEX, *shards, "consolidated.safetensors")
    index = {"weight_map": {"a": shards[0], "b": shards[1], "c": shards[0]}}
    assert names(narrow_to_index(choice, index, where=WHERE), FileRole.WEIGHTS) == list(shards)


def test_pytorch_files_are_taken_where_there_are_no_safetensors() -> None:
    choice = choose(*SMALL, "pytorch_model.bin", "training_args.bin", "optimizer.pt")
    assert (choice.format, names(choice, FileRole.WEIGHTS)) == ("torch", ["pytorch_model.bin"])
    assert choose(*SMALL, "pytorch_model.bin", "model.safetensors").format == "safetensors"
    assert names(choose(*SMALL, "code.pt"), FileRole.WEIGHTS) == ["code.pt"]
    shards = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
    choice = choose(*SMALL, TORCH_INDEX, *shards)
    assert (choice.index, names(choice, FileRole.CONFIG)) == (TORCH_INDEX, ["config.json", TORCH_INDEX])
    narrowed = narrow_to_index(choice, {"weight_map": {"a": shards[1]}}, where=WHERE)
    assert names(narrowed, FileRole.WEIGHTS) == [shards[1]]


def test_ranks_are_a_checkpoint_of_tensorrt_llm() -> None:
    choice = choose(*SMALL, "rank0.safetensors", "rank1.safetensors", "model.cache")
    assert choice.format == "tensorrt_llm"
    assert names(choice, FileRole.WEIGHTS) == ["rank0.safetensors", "rank1.safetensors"]


def test_a_gguf_is_a_checkpoint_of_its_own() -> None:
    choice = choose("code.gguf", "README.md", "config.json")
    assert choice.format == "gguf"
    assert [chosen.file.name for chosen in choice.files] == ["code.gguf"]


REFUSED = {
    "a shard is missing": (
        lambda: narrow_to_index(
            choose(*SMALL, INDEX, "m-00001-of-00002.safetensors"),
            {"weight_map": {"a": "m-00001-of-00002.safetensors", "b": "m-00002-of-00002.safetensors"}},
            where=WHERE,
        ),
        Reason.CHECKPOINT_INCOMPLETE,
        "m-00002-of-00002.safetensors is missing",
    ),
    "the index has no map": (
        lambda: narrow_to_index(choose(*SMALL, INDEX, "m-00001-of-00001.safetensors"), {}, where=WHERE),
        Reason.CHECKPOINT_CORRUPT,
        "weight_map",
    ),
    "the index is missing": (
        lambda: choose(*SMALL, "m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"),
        Reason.CHECKPOINT_INCOMPLETE,
        INDEX,
    ),
    "one shard and no index": (
        lambda: choose(*SMALL, "m-00001-of-00002.safetensors"),
        Reason.CHECKPOINT_INCOMPLETE,
        INDEX,
    ),
    "the tokenizer is missing": (
        lambda: choose("config.json", "model.safetensors"),
        Reason.CHECKPOINT_INCOMPLETE,
        "tokenizer.json is missing in s3://models/code/",
    ),
    "the config is missing": (
        lambda: choose("tokenizer.json", "model.safetensors"),
        Reason.CHECKPOINT_INCOMPLETE,
        "config.json is missing",
    ),
    "there is only what a trainer leaves": (
        lambda: choose(*SMALL, "optimizer.pt", "training_args.bin", "rng_state_0.pth"),
        Reason.CHECKPOINT_INCOMPLETE,
        "no weights",
    ),
    "shards of PyTorch without their index": (
        lambda: choose(*SMALL, "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"),
        Reason.CHECKPOINT_INCOMPLETE,
        TORCH_INDEX,
    ),
    "there is something else": (lambda: choose("README.md"), Reason.CHECKPOINT_INCOMPLETE, "no weights"),
    "several GGUF files": (
        lambda: choose("a.gguf", "b.gguf"),
        Reason.CHECKPOINT_INCOMPLETE,
        "a.gguf, b.gguf",
    ),
    "a split GGUF": (
        lambda: choose("a-00001-of-00002.gguf", "a-00002-of-00002.gguf"),
        Reason.UNSUPPORTED_ARCHITECTURE,
        "split GGUF",
    ),
    "an empty weight file": (
        lambda: choose(*SMALL, "model.safetensors", empty="model.safetensors"),
        Reason.CHECKPOINT_CORRUPT,
        "model.safetensors in s3://models/code/ is empty",
    ),
}


@pytest.mark.parametrize(("make", "reason", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_checkpoint_is_refused_by_name(make, reason: Reason, words: str) -> None:
    with pytest.raises(Terminal) as failure:
        make()
    assert failure.value.reason is reason
    assert words in failure.value.message


@pytest.mark.parametrize(
    ("uri", "bucket", "prefix", "only"),
    [
        ("s3://b/p/", "b", "p/", ""),
        ("s3://b/p", "b", "p/", ""),
        ("s3://b/", "b", "", ""),
        ("s3://b", "b", "", ""),
        ("s3://b/p/q/model.gguf", "b", "p/q/", "model.gguf"),
        ("s3://b/model.gguf", "b", "", "model.gguf"),
    ],
)
def test_a_uri_names_a_folder_or_one_file(uri: str, bucket: str, prefix: str, only: str) -> None:
    place = parse_uri(uri)
    assert place == S3Place(uri, bucket, prefix, only)


@pytest.mark.parametrize("uri", ["", "s3://", "gs://b/p/", "/folder", "s3:/b"])
def test_another_uri_is_refused(uri: str) -> None:
    with pytest.raises(Terminal, match="s3://BUCKET/PREFIX/"):
        parse_uri(uri)
