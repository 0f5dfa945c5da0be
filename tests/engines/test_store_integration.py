"""The engine store and the checkpoint source against a real S3: what is there, what is not, and what went wrong."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from hotstart.engines.checkpoints.choose import ChosenFile, FileRole, ListedFile
from hotstart.engines.checkpoints.places import parse_uri
from hotstart.engines.checkpoints.s3_source import S3Source
from hotstart.engines.checkpoints.source import download, stream
from hotstart.engines.errors import EngineError, Reason, Retryable, Terminal
from hotstart.engines.key import key_inputs, make_key
from hotstart.engines.manifest import MANIFEST_NAME, Manifest, ManifestFile, engine_prefix, parse_manifest
from hotstart.engines.recipe import CTRANSLATE2_TOOLCHAIN, EngineRecipe
from hotstart.engines.s3 import StorePlace
from hotstart.engines.store import S3EngineStore

from tests.support.object_store import ObjectStore

pytestmark = pytest.mark.integration

INPUTS = key_inputs("3c" * 32, EngineRecipe(CTRANSLATE2_TOOLCHAIN, dtype="float32", quantization="int8"))
KEY = make_key(INPUTS)
PREFIX = engine_prefix("uid", KEY)
BODY = b"weights" * 1000
MANIFEST = Manifest(
    key=KEY,
    inputs=INPUTS,
    files=(ManifestFile("model.bin", len(BODY), hashlib.sha256(BODY).hexdigest()),),
    tokenizer_digest="ef" * 32,
    build_seconds=1.0,
)
NAME = f"{PREFIX}model.bin"


@pytest.fixture
def bucket(object_store: ObjectStore) -> str:
    return object_store.make_bucket("engines")


@pytest.fixture
def store(object_store: ObjectStore, bucket: str) -> S3EngineStore:
    return S3EngineStore(object_store.place(bucket))


def put_part(url: str, body: bytes) -> str:
    with urlopen(Request(url, data=body, method="PUT"), timeout=30) as response:
        return str(response.headers["ETag"])


def test_a_truncated_upload_is_never_an_engine(store: S3EngineStore, object_store: ObjectStore, bucket: str) -> None:
    upload_id = store.create_upload(NAME)
    put_part(store.presign_part(NAME, upload_id, 1), BODY[:100])
    assert store.size(NAME) is None
    assert store.get_manifest(PREFIX) is None
    assert [upload.upload_id for upload in store.list_uploads(PREFIX)] == [upload_id]
    store.abort_upload(NAME, upload_id)
    store.abort_upload(NAME, upload_id)
    assert store.list_uploads(PREFIX) == ()
    assert object_store.keys(bucket) == []


def test_a_file_of_another_size_than_sent_is_refused(store: S3EngineStore) -> None:
    upload_id = store.create_upload(NAME)
    etag = put_part(store.presign_part(NAME, upload_id, 1), BODY[:100])
    with pytest.raises(Retryable, match=f"has 100 bytes after its upload, the builder sent {len(BODY)}"):
        store.complete_upload(NAME, upload_id, [etag], size=len(BODY))


def test_an_upload_is_completed_by_whoever_comes_first_and_is_read_by_url(store: S3EngineStore) -> None:
    upload_id = store.create_upload(NAME)
    etag = put_part(store.presign_part(NAME, upload_id, 1), BODY)
    store.complete_upload(NAME, upload_id, [etag], size=len(BODY))
    store.complete_upload(NAME, upload_id, [etag], size=len(BODY))  # an operator that took over in between
    assert store.size(NAME) == len(BODY)
    request = Request(store.presign_get(NAME), headers={"Range": "bytes=7-13"})
    with urlopen(request, timeout=30) as response:
        assert (response.status, response.read()) == (206, b"weights")


def test_a_url_is_good_for_one_object_and_one_time(
    object_store: ObjectStore, bucket: str, store: S3EngineStore
) -> None:
    upload_id = store.create_upload(NAME)
    url = store.presign_part(NAME, upload_id, 1)
    with pytest.raises(HTTPError, match="403"):
        put_part(url.replace("model.bin", "other.bin"), BODY)
    with pytest.raises(HTTPError, match="403"):
        put_part(url.replace("partNumber=1", "partNumber=2"), BODY)
    short = S3EngineStore(object_store.place(bucket), lifetime=1)
    expired = short.presign_part(NAME, upload_id, 1)
    while True:
        try:
            put_part(expired, BODY)
        except HTTPError as refusal:
            assert refusal.code in (400, 403)
            break


def test_the_manifest_is_written_once_and_a_race_has_one_winner(store: S3EngineStore) -> None:
    assert store.put_manifest(PREFIX, MANIFEST.to_json()) == MANIFEST.to_json()
    slower = replace(MANIFEST, build_seconds=99.0).to_json()
    assert store.put_manifest(PREFIX, slower) == MANIFEST.to_json()
    assert parse_manifest(store.get_manifest(PREFIX) or "", key=KEY) == MANIFEST
    other = replace(MANIFEST, files=(ManifestFile("model.bin", 1, "ab" * 32),)).to_json()
    with pytest.raises(Terminal, match="other files under the same key") as failure:
        store.put_manifest(PREFIX, other)
    assert failure.value.reason is Reason.STORE_CONFLICT


def test_a_damaged_manifest_is_no_winner(store: S3EngineStore, object_store: ObjectStore, bucket: str) -> None:
    object_store.client().put_object(Bucket=bucket, Key=f"{PREFIX}{MANIFEST_NAME}", Body=b"{}")
    with pytest.raises(Terminal, match="is damaged") as failure:
        store.put_manifest(PREFIX, MANIFEST.to_json())
    assert failure.value.reason is Reason.STORE_CONFLICT


def test_an_engine_is_deleted_with_everything_of_it(
    store: S3EngineStore, object_store: ObjectStore, bucket: str
) -> None:
    object_store.client().put_object(Bucket=bucket, Key=NAME, Body=BODY)
    object_store.client().put_object(Bucket=bucket, Key="engines/uid/other/model.bin", Body=BODY)
    store.put_manifest(PREFIX, MANIFEST.to_json())
    assert store.delete_prefix(PREFIX) == 2
    assert object_store.keys(bucket) == ["engines/uid/other/model.bin"]
    assert store.delete_prefix(PREFIX) == 0
    assert f"{PREFIX}{MANIFEST_NAME}" not in object_store.keys(bucket)


PLACES = {
    "no such bucket": (lambda s, b: s.place("no-such-bucket"), Reason.BUCKET_NOT_FOUND, "no bucket no-such-bucket"),
    "unknown key": (lambda s, b: s.place(b, access_key="nobody"), Reason.ACCESS_DENIED, "does not know"),
    "wrong secret": (lambda s, b: s.place(b, secret_key="no"), Reason.ACCESS_DENIED, "AWS_SECRET_ACCESS_KEY is wrong"),
    "no credentials": (lambda s, b: s.place(b, access_key=""), Reason.ACCESS_DENIED, "without credentials"),
    "nobody listens": (
        lambda s, b: replace(s.place(b), endpoint="http://127.0.0.1:1"),
        Reason.STORE_UNREACHABLE,
        "http://127.0.0.1:1 does not answer",
    ),
    "no such host": (
        lambda s, b: replace(s.place(b), endpoint="http://store.invalid:80"),
        Reason.STORE_UNREACHABLE,
        "http://store.invalid:80 does not answer",
    ),
}


@pytest.mark.parametrize(("make", "reason", "words"), PLACES.values(), ids=PLACES.keys())
def test_what_is_wrong_with_a_store_is_said_with_its_remedy(
    object_store: ObjectStore, bucket: str, make, reason: Reason, words: str
) -> None:
    place: StorePlace = make(object_store, bucket)
    source = S3Source(parse_uri(f"s3://{place.bucket}/p/"), place)
    for call in (S3EngineStore(place).check, source.list_files):
        with pytest.raises(Retryable) as failure:
            call()
        assert failure.value.reason is reason
        assert words in failure.value.message
        assert place.bucket in failure.value.message


def test_a_reader_may_not_write(object_store: ObjectStore, bucket: str) -> None:
    place = object_store.place(
        bucket, access_key=object_store.reader_access_key, secret_key=object_store.reader_secret_key
    )
    store = S3EngineStore(place)
    store.check()
    with pytest.raises(Retryable, match=f"rights of its user on {bucket}") as failure:
        store.put_manifest(PREFIX, MANIFEST.to_json())
    assert failure.value.reason is Reason.ACCESS_DENIED


def test_a_checkpoint_that_is_not_there_is_named(object_store: ObjectStore, bucket: str) -> None:
    for uri in (f"s3://{bucket}/nowhere/", f"s3://{bucket}/nowhere/model.gguf"):
        with pytest.raises(Retryable, match="There is no checkpoint at") as failure:
            S3Source(parse_uri(uri), object_store.place(bucket)).list_files()
        assert failure.value.reason is Reason.CHECKPOINT_NOT_FOUND
        assert uri in failure.value.message


def test_a_folder_is_listed_without_its_neighbours(object_store: ObjectStore, bucket: str) -> None:
    client = object_store.client()
    for key in ("code/a.gguf", "code/sub/b.txt", "code-2/c.gguf"):
        client.put_object(Bucket=bucket, Key=key, Body=b"x")
    source = S3Source(parse_uri(f"s3://{bucket}/code"), object_store.place(bucket))
    assert [file.name for file in source.list_files()] == ["a.gguf"]
    one = S3Source(parse_uri(f"s3://{bucket}/code/a.gguf"), object_store.place(bucket))
    assert [file.name for file in one.list_files()] == ["a.gguf"]


def test_a_file_replaced_while_it_is_read_is_noticed(object_store: ObjectStore, bucket: str) -> None:
    client = object_store.client()
    client.put_object(Bucket=bucket, Key="m/a.gguf", Body=b"first")
    source = S3Source(parse_uri(f"s3://{bucket}/m/"), object_store.place(bucket))
    [file] = source.list_files()
    client.put_object(Bucket=bucket, Key="m/a.gguf", Body=b"other")
    with pytest.raises(Retryable, match="was replaced while it was read") as failure:
        b"".join(stream(source, file))
    assert failure.value.reason is Reason.CHECKPOINT_CHANGED


class Flaky(BaseHTTPRequestHandler):
    """An S3 that hangs up after every 40,000 bytes of a body, but honours ranges."""

    protocol_version = "HTTP/1.1"
    body = bytes(range(256)) * 600
    ranges: list[str] = []  # noqa: RUF012 - one list for the whole test

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        self.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-") or 0)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(self.body) - start))
        self.end_headers()
        self.wfile.write(self.body[start : start + 40_000])
        self.close_connection = True

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base class's name
        """Says nothing."""


@pytest.fixture
def flaky_endpoint() -> Iterator[str]:
    Flaky.ranges.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Flaky)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_broken_download_goes_on_where_it_was(flaky_endpoint: str) -> None:
    source = S3Source(parse_uri("s3://b/m/"), StorePlace("b", flaky_endpoint))
    assert b"".join(stream(source, ListedFile("a.gguf", len(Flaky.body)))) == Flaky.body
    assert Flaky.ranges == ["", "bytes=40000-", "bytes=80000-", "bytes=120000-"]


def test_a_download_that_breaks_too_often_is_given_up(flaky_endpoint: str) -> None:
    source = S3Source(parse_uri("s3://b/m/"), StorePlace("b", flaky_endpoint))
    with pytest.raises(EngineError, match="broke off 6 times") as failure:
        b"".join(stream(source, ListedFile("a.gguf", 10 * len(Flaky.body))))
    assert failure.value.reason is Reason.STORE_UNREACHABLE


def test_a_disk_that_fills_up_while_downloading_is_said_too(
    object_store: ObjectStore, bucket: str, tmp_path: Path
) -> None:
    object_store.client().put_object(Bucket=bucket, Key="m/a.gguf", Body=b"x" * 3_000_000)
    source = S3Source(parse_uri(f"s3://{bucket}/m/"), object_store.place(bucket))
    [file] = source.list_files()
    (tmp_path / "a.gguf").symlink_to("/dev/full")
    chosen = (ChosenFile(file, FileRole.WEIGHTS),)
    with pytest.raises(Retryable, match="ephemeral storage") as failure:
        download(source, chosen, tmp_path, on_bytes=lambda count: None, heads_only=False)
    assert failure.value.reason is Reason.DISK_FULL


def test_what_does_not_fit_on_the_disk_is_said_with_sizes(
    object_store: ObjectStore, bucket: str, tmp_path: Path
) -> None:
    source = S3Source(parse_uri(f"s3://{bucket}/m/"), object_store.place(bucket))
    huge = ChosenFile(ListedFile("a.gguf", 2**60), FileRole.WEIGHTS)
    with pytest.raises(Retryable, match=r"1073741824\.00 GiB are needed") as failure:
        download(source, (huge,), tmp_path, on_bytes=lambda count: None, heads_only=False)
    assert failure.value.reason is Reason.DISK_FULL


def test_a_quarantines_marker_is_no_engine_and_the_newer_one_stands(store: S3EngineStore) -> None:
    assert store.get_quarantine(PREFIX) is None
    for text in ('{"number": 1}', '{"number": 2}'):
        store.put_quarantine(PREFIX, text)
        assert store.get_quarantine(PREFIX) == text
    assert store.get_manifest(PREFIX) is None
    assert store.put_manifest(PREFIX, MANIFEST.to_json()) == MANIFEST.to_json()
    assert store.get_quarantine(PREFIX) == '{"number": 2}'
