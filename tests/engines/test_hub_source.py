"""The hub as a source: its pages, redirects, tokens, broken connections and refusals, over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hotstart.engines.builder.cli import run_inspect
from hotstart.engines.builder.log_tail import LogTail
from hotstart.engines.builder.settings import HUB, make_checkpoint_access
from hotstart.engines.checkpoints.choose import ChosenFile, FileRole
from hotstart.engines.checkpoints.hub_source import HubSource
from hotstart.engines.checkpoints.places import HubPlace
from hotstart.engines.checkpoints.source import HubAccess, download, stream
from hotstart.engines.errors import EngineError, Reason, Retryable
from hotstart.exchange.messages import ServingOptions

from tests.support.hub import COMMIT, LARGE, REPOSITORY, Hub, serve_hub
from tests.support.tiny_checkpoint import write_tiny_checkpoint

LARGE_BODY = bytes(range(256)) * 600
FILES = {"config.json": b"{}", "model.safetensors": LARGE_BODY, "tokenizer.json": b"[]", "x/y.json": b"1"}
SECRET = "the Secret hub-reader"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub(Hub(dict(FILES))) as served:
        yield served


def source_of(hub: Hub, *, token: str = "", commit: str = COMMIT, repository: str = REPOSITORY) -> HubSource:
    place = HubPlace(f"hf://{repository}@{commit}", repository, commit)
    return HubSource(place, HubAccess(hub.address, token, SECRET))


def read(hub: Hub, name: str = "model.safetensors", **options: Any) -> bytes:
    source = source_of(hub, **options)
    return b"".join(stream(source, next(file for file in source.list_files() if file.name == name)))


def test_all_pages_are_listed_with_the_digests_of_lfs_and_git(hub: Hub) -> None:
    listed = source_of(hub).list_files()
    assert [file.name for file in listed] == ["config.json", "model.safetensors", "tokenizer.json"]
    assert [len(file.sha256) for file in listed] == [0, 64, 0]
    assert all(len(file.git_oid) == 40 for file in listed)
    assert len([asked for asked in hub.asked if "/tree/" in asked[0]]) == 2


def test_the_token_goes_to_the_hub_and_not_along_a_redirect(hub: Hub) -> None:
    hub.token = "hf_secret"
    assert read(hub, token="hf_secret") == LARGE_BODY
    sent = {path: authorization for path, _, authorization in hub.asked}
    assert sent.pop("/lfs/model.safetensors") == ""
    assert set(sent.values()) == {"Bearer hf_secret"}


def test_a_broken_download_goes_on_where_it_was(hub: Hub) -> None:
    hub.break_after = 40_000
    assert read(hub) == LARGE_BODY
    ranges = [asked for path, asked, _ in hub.asked if path.startswith("/lfs/")]
    assert ranges == ["", "bytes=40000-", "bytes=80000-", "bytes=120000-"]


def test_a_network_that_knows_no_ranges_is_read_again_from_the_start(hub: Hub) -> None:
    hub.ranges = False
    source = source_of(hub)
    file = next(file for file in source.list_files() if file.sha256)
    assert b"".join(source.blocks(file, 100_000)) == LARGE_BODY[100_000:]


def test_a_hub_that_is_busy_is_asked_again(hub: Hub) -> None:
    hub.busy = 2
    assert len(source_of(hub).list_files()) == 3


DAMAGED = {
    "model.safetensors": LARGE_BODY[:-1] + b"x",
    "config.json": b"{ ",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_file_of_another_digest_than_listed_is_refused(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.listed = FILES | {name: DAMAGED[name]}
    assert (len(DAMAGED[name]) < LARGE, len(DAMAGED[name])) == (name == "config.json", len(FILES[name]))
    source = source_of(hub)
    files = tuple(ChosenFile(file, FileRole.WEIGHTS) for file in source.list_files())
    with pytest.raises(Retryable, match=f"{name} of hf://team/code@5f") as failure:
        download(source, files, tmp_path, on_bytes=lambda count: None, heads_only=True)
    assert failure.value.reason is Reason.CHECKPOINT_CORRUPT
    assert "is listed" in failure.value.message


REFUSED: dict[str, tuple[dict[str, Any], dict[str, str], Reason, tuple[str, ...]]] = {
    "a private repository without a token": (
        {"token": "hf_secret"}, {}, Reason.ACCESS_DENIED, ("private or does not exist", "HF_TOKEN in the Secret hub-"),
    ),
    "a wrong token": ({"token": "hf_secret"}, {"token": "hf_x"}, Reason.ACCESS_DENIED, ("refuses its HF_TOKEN",)),
    "a gated repository": ({"gated": True}, {}, Reason.ACCESS_DENIED, ("ask for access at http", "/team/code")),
    "an unknown commit": ({}, {"commit": "0" * 40}, Reason.CHECKPOINT_NOT_FOUND, ("has no commit 000000",)),
    "an unknown repository": ({}, {"repository": "team/x"}, Reason.CHECKPOINT_NOT_FOUND, ("no repository team/x",)),
    "a hub that stays busy": ({"busy": 99}, {}, Reason.STORE_UNREACHABLE, ("answered 503",)),
    "an empty repository": ({"files": {}}, {}, Reason.CHECKPOINT_NOT_FOUND, ("no such file or folder",)),
}  # fmt: skip


@pytest.mark.parametrize(("state", "options", "reason", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_the_hub_refuses_is_said_with_its_remedy(
    hub: Hub, state: dict[str, Any], options: dict[str, str], reason: Reason, words: tuple[str, ...]
) -> None:
    for name, value in state.items():
        setattr(hub, name, value)
    with pytest.raises(Retryable) as failure:
        source_of(hub, **options).list_files()
    assert failure.value.reason is reason
    assert all(word in failure.value.message for word in words), failure.value.message


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "http://hub.invalid"])
def test_a_hub_that_does_not_answer_is_named(address: str) -> None:
    with pytest.raises(EngineError, match=f"{address} does not answer") as failure:
        source_of(Hub({}, address=address)).list_files()
    assert failure.value.reason is Reason.STORE_UNREACHABLE


@pytest.mark.parametrize(
    ("checkpoint", "environment", "expected"),
    [
        ("", {}, HubAccess(HUB, "", "the Secret of checkpoint.secretName")),
        (', "secretName": "hub-reader"', {"HF_TOKEN": "hf_x\n"}, HubAccess(HUB, "hf_x", SECRET)),
        ("", {"HF_ENDPOINT": "http://mirror"}, HubAccess("http://mirror", "", "the Secret of checkpoint.secretName")),
        (
            ', "endpoint": "http://other"',
            {"HF_ENDPOINT": "http://mirror"},
            HubAccess("http://other", "", "the Secret of checkpoint.secretName"),
        ),
    ],
)
def test_hub_and_token_come_from_the_spec_and_the_secret(
    checkpoint: str, environment: dict[str, str], expected: HubAccess
) -> None:
    text = f'{{"uri": "hf://team/code@{COMMIT}"{checkpoint}}}'
    access = make_checkpoint_access({"HOTSTART_CHECKPOINT": text, **environment})
    assert access.hub == expected
    assert isinstance(access.place, HubPlace)


@pytest.mark.parametrize(("token", "code"), [("hf_secret", 0), ("hf_other", 1)])
def test_an_inspection_reads_the_hub_with_the_token_of_its_secret(
    hub: Hub, tmp_path: Path, token: str, code: int
) -> None:
    hub.token = "hf_secret"
    hub.files = {p.name: p.read_bytes() for p in write_tiny_checkpoint(tmp_path / "c", shards=2).iterdir()}
    (tmp_path / "scratch").mkdir()
    checkpoint = {"uri": f"hf://{REPOSITORY}@{COMMIT}", "endpoint": hub.address, "secretName": "hub-reader"}
    environment = {
        "HOTSTART_CHECKPOINT": json.dumps(checkpoint),
        "HOTSTART_SERVING": ServingOptions(max_input_tokens=96, max_new_tokens=32).model_dump_json(),
        "HOTSTART_RUNTIME": "ctranslate2",
        "HOTSTART_SCRATCH": str(tmp_path / "scratch"),
        "HOTSTART_TERMINATION_LOG": str(tmp_path / "said"),
        "HF_TOKEN": token,
    }
    assert run_inspect(environment, LogTail()) == code
    said = json.loads((tmp_path / "said").read_text())
    if code == 0:
        assert (said["architecture"], said["format"], said["files"]) == ("LlamaForCausalLM", "safetensors", 7)
    else:
        assert said["failure"]["reason"] == "AccessDenied"
        assert "Correct checkpoint.uri, or HF_TOKEN in the Secret hub-reader" in said["failure"]["message"]
    assert not list((tmp_path / "scratch").iterdir())
