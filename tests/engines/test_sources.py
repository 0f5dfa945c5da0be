"""One suite over every source of a checkpoint: a real S3 store, a claim, a folder of this machine, the hub's API."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from hotstart.engines.builder.prepare import Prepared, prepare
from hotstart.engines.checkpoints import source as source_module
from hotstart.engines.checkpoints.choose import ChosenFile, FileRole, ListedFile
from hotstart.engines.checkpoints.places import FolderPlace, HubPlace, parse_uri
from hotstart.engines.checkpoints.source import HubAccess, Source, download, open_source, stream
from hotstart.engines.errors import EngineError, Reason, Retryable, Terminal
from hotstart.engines.key import make_checkpoint_digest
from hotstart.engines.s3 import StorePlace
from hotstart.exchange.messages import ServingOptions

from tests.support.hub import COMMIT, REPOSITORY, Hub, serve_hub
from tests.support.tiny_checkpoint import write_tiny_checkpoint

pytestmark = pytest.mark.integration

SERVING = ServingOptions(max_input_tokens=96, max_new_tokens=32)
BODY = bytes(range(256)) * 40
FILES = {"a.gguf": BODY, "b.txt": b"small", "sub/c.txt": b"not listed", "ü b.bin": BODY[::-1]}


@dataclass
class Place:
    """Somewhere that a test can fill; ``open`` is the source of the folder, or of one file in it."""

    fill: Callable[[dict[str, bytes]], None]
    open: Callable[[str], Source]


def make_s3(stack: ExitStack, request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    store = request.getfixturevalue("object_store")
    bucket = store.make_bucket("checkpoints")

    def fill(files: dict[str, bytes]) -> None:
        for name, body in files.items():
            store.client().put_object(Bucket=bucket, Key=f"models/code/{name}", Body=body)

    def open_(only: str) -> Source:
        uri = f"s3://{bucket}/models/code/{only}"
        return open_source(parse_uri(uri), store.place(bucket), HubAccess())

    return Place(fill, open_)


def make_folder(uri: str, root: Path) -> Place:
    def fill(files: dict[str, bytes]) -> None:
        for name, body in files.items():
            path = root / "models/code" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)

    def open_(only: str) -> Source:
        place = parse_uri(f"{uri}/models/code/{only}", local=True, mount=root)
        return open_source(place, StorePlace(""), HubAccess())

    return Place(fill, open_)


def make_hub(stack: ExitStack, request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    hub = stack.enter_context(serve_hub(Hub({}, token="hf_secret")))

    def open_(only: str) -> Source:
        place = parse_uri(f"hf://{REPOSITORY}@{COMMIT}/models/code/{only}")
        return open_source(place, StorePlace(""), HubAccess(hub.address, "hf_secret"))

    return Place(lambda files: hub.files.update({f"models/code/{n}": b for n, b in files.items()}), open_)


PLACES: dict[str, Callable[[ExitStack, pytest.FixtureRequest, Path], Place]] = {
    "s3": make_s3,
    "pvc": lambda stack, request, tmp_path: make_folder("pvc://trained-models", tmp_path / "mount"),
    "file": lambda stack, request, tmp_path: make_folder(f"file://{tmp_path}", tmp_path),
    "hf": make_hub,
}


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        yield PLACES[request.param](stack, request, tmp_path)


def find(source: Source, name: str) -> ListedFile:
    return next(file for file in source.list_files() if file.name == name)


def test_the_files_of_the_folder_are_listed_by_name_without_its_subfolders(place: Place) -> None:
    place.fill(FILES)
    listed = [(file.name, file.size) for file in place.open("").list_files()]
    assert listed == [("a.gguf", len(BODY)), ("b.txt", 5), ("ü b.bin", len(BODY))]


def test_one_file_of_it_can_be_named(place: Place) -> None:
    place.fill(FILES)
    assert [file.name for file in place.open("a.gguf").list_files()] == ["a.gguf"]


@pytest.mark.parametrize("only", ["", "a.gguf"])
def test_where_nothing_is_the_uri_is_named(place: Place, only: str) -> None:
    place.fill({"sub/c.txt": b"x"})
    source = place.open(only)
    with pytest.raises(Retryable) as failure:
        source.list_files()
    assert failure.value.reason is Reason.CHECKPOINT_NOT_FOUND
    assert source.where in failure.value.message


@pytest.mark.parametrize("name", ["a.gguf", "b.txt", "ü b.bin"])
def test_a_file_is_read_from_any_byte_on(place: Place, name: str) -> None:
    place.fill(FILES)
    source = place.open("")
    file = find(source, name)
    assert b"".join(stream(source, file)) == FILES[name]
    for start in (1, file.size // 2, file.size - 1):
        assert b"".join(source.blocks(file, start)) == FILES[name][start:]


def test_a_file_replaced_after_it_was_listed_is_not_taken(place: Place, tmp_path: Path) -> None:
    place.fill(FILES)
    source = place.open("")
    chosen = ChosenFile(find(source, "a.gguf"), FileRole.WEIGHTS)
    place.fill({"a.gguf": BODY[::-1]})
    (tmp_path / "target").mkdir()
    with pytest.raises(EngineError) as failure:
        download(source, (chosen,), tmp_path / "target", on_bytes=lambda count: None, heads_only=False)
    assert failure.value.reason in (Reason.CHECKPOINT_CHANGED, Reason.CHECKPOINT_CORRUPT)
    assert "a.gguf" in failure.value.message


@pytest.mark.parametrize("heads_only", [False, True])
def test_what_is_downloaded_has_its_digest_its_size_and_its_ends(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heads_only: bool
) -> None:
    monkeypatch.setattr(source_module, "BLOCK", 700)
    monkeypatch.setattr(source_module, "HEAD", 3000)
    monkeypatch.setattr(source_module, "TAIL", 1000)
    place.fill(FILES)
    source, target, heard = place.open(""), tmp_path / "target", []
    target.mkdir()
    files = tuple(ChosenFile(file, FileRole.WEIGHTS) for file in source.list_files())
    digests = download(source, files, target, on_bytes=heard.append, heads_only=heads_only)
    assert digests == {n: hashlib.sha256(b).hexdigest() for n, b in FILES.items() if "/" not in n}
    assert sum(heard) == sum(chosen.file.size for chosen in files)
    for chosen in files:
        found, body = (target / chosen.file.name).read_bytes(), FILES[chosen.file.name]
        if heads_only and source.local_path(chosen.file) is None and len(body) > 4000:
            assert found == body[:3000] + bytes(len(body) - 4000) + body[-1000:]
        else:
            assert found == body


def test_a_checkpoint_has_the_same_digest_wherever_it_stands(place: Place, tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "tiny", shards=2)
    place.fill({path.name: path.read_bytes() for path in folder.iterdir()})
    for heads_only in (True, False):
        target = tmp_path / f"target-{heads_only}"
        target.mkdir()
        prepared = prepare(
            place.open(""), target, SERVING, on_choice=lambda size: None, on_bytes=lambda count: None,
            heads_only=heads_only, runtime="ctranslate2",
        )  # fmt: skip
        in_digest = [path for path in folder.iterdir() if not path.name.startswith("tokenizer")]
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in in_digest]
        assert prepared.checkpoint_digest == make_checkpoint_digest(digests)
        assert prepared.checkpoint.tensor("model.norm.weight").shape == (64,)


def test_the_token_that_begins_a_text_is_in_the_tokenizers_digest(tmp_path: Path) -> None:
    """tokenizer_config.json may decide on it, and is in no digest itself."""
    folder = write_tiny_checkpoint(tmp_path / "mount/code")
    digests = []
    for number, said in enumerate(("{}", '{"add_bos_token": false}', '{"add_bos_token": true}')):
        (folder / "tokenizer_config.json").write_text(said)
        (target := tmp_path / f"target-{number}").mkdir()
        digests.append(prepare_claim(folder, tmp_path / "mount", target))
    usual, agreeing, begun = (prepared.tokenizer_digest for prepared in digests)
    assert usual == agreeing == hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest() != begun
    assert len({prepared.checkpoint_digest for prepared in digests}) == 1


def prepare_claim(folder: Path, root: Path, target: Path) -> Prepared:
    return prepare(
        folder_source(folder, root), target, SERVING,
        on_choice=lambda size: None, on_bytes=lambda count: None, heads_only=False, runtime="ctranslate2",
    )  # fmt: skip


def folder_source(folder: Path, root: Path) -> Source:
    return open_source(FolderPlace(f"pvc://models/{folder.name}", folder, root), StorePlace(""), HubAccess())


def test_a_file_that_is_used_where_it_lies_must_stay_what_it_was(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "mount/code")
    (tmp_path / "target").mkdir()
    prepared = prepare_claim(folder, tmp_path / "mount", tmp_path / "target")
    assert (tmp_path / "target/model.safetensors").is_symlink()
    prepared.check_unchanged()
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-1] + b"x")
    with pytest.raises(Retryable, match=r"model\.safetensors of pvc://models/code was replaced") as failure:
        prepared.check_unchanged()
    assert failure.value.reason is Reason.CHECKPOINT_CHANGED
    (folder / "model.safetensors").unlink()
    with pytest.raises(Retryable, match="was replaced"):
        prepared.check_unchanged()


def test_links_of_a_claim_lead_anywhere_in_it_and_not_out_of_it(tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    (mount / "blobs").mkdir(parents=True)
    (mount / "snapshot").mkdir()
    (mount / "blobs/0a").write_bytes(BODY)
    (mount / "snapshot/inside.gguf").symlink_to("../blobs/0a")
    (tmp_path / "secret").write_bytes(b"x")
    (mount / "snapshot/outside.gguf").symlink_to("../../secret")
    source = folder_source(mount / "snapshot", mount)
    assert b"".join(stream(source, find(source, "inside.gguf"))) == BODY
    with pytest.raises(Terminal, match=r"outside\.gguf of pvc://models/snapshot is a link that leads out") as failure:
        b"".join(stream(source, find(source, "outside.gguf")))
    assert failure.value.reason is Reason.INVALID_SPEC


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("pvc://models/../other", "must not lead out of the claim"),
        ("pvc:///models", "pvc://CLAIM/PATH"),
        ("hf://team/code", "40 hex digits"),
        ("hf://team/code@main", "40 hex digits"),
        ("hf://code@" + COMMIT, "hf://ORG/NAME@COMMIT"),
        ("s3://models/code/model.safetensors", "model.safetensors is weights alone"),
        ("pvc://models/code/pytorch_model.bin", "config.json and tokenizer.json belong to them: name the folder"),
        ("file:///models", "it must be s3://BUCKET/PREFIX/, pvc://CLAIM/PATH or hf://ORG/NAME@COMMIT"),
    ],
)
def test_a_uri_of_no_form_says_which_form_it_should_have(uri: str, words: str) -> None:
    with pytest.raises(Terminal) as failure:
        parse_uri(uri)
    assert failure.value.reason is Reason.INVALID_SPEC
    assert words in failure.value.message and uri in failure.value.message


def test_a_folder_may_be_called_as_a_file() -> None:
    assert parse_uri("s3://models/code.bin/").prefix == "code.bin/"  # type: ignore[union-attr]


def test_a_place_of_the_hub_may_be_a_folder_or_a_file_of_the_repository() -> None:
    root = f"hf://team/code@{COMMIT}"
    assert parse_uri(root) == HubPlace(root, "team/code", COMMIT)
    assert parse_uri(f"{root}/q8/") == HubPlace(f"{root}/q8/", "team/code", COMMIT, "q8/")
    assert parse_uri(f"{root}/q8/c.gguf") == HubPlace(f"{root}/q8/c.gguf", "team/code", COMMIT, "q8/", "c.gguf")
