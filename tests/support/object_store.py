"""A real S3 on this machine for tests: SeaweedFS on free loopback ports, ended with all it wrote.

``start_object_store`` is a context manager; ``tests/conftest.py`` has the session's fixture ``object_store``.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from hotstart.cluster import private_tmp
from hotstart.engines.s3 import StorePlace

from tests.support.ports import free_port

START_SECONDS = 60
REGION = "us-east-1"
_PORTS = tuple(f"{part}.{port}" for part in ("master", "volume", "filer", "s3") for port in ("port.grpc", "port"))


@dataclass(frozen=True)
class ObjectStore:
    """A running store. The administrator may do everything, the reader may only read and list."""

    endpoint: str
    access_key: str = "administrator"
    secret_key: str = "administrators-secret"
    reader_access_key: str = "reader"
    reader_secret_key: str = "readers-secret"

    def client(self) -> Any:
        """A boto3 client with the administrator's key."""
        config = Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            connect_timeout=5,
            read_timeout=30,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=config,
        )

    def place(self, bucket: str, *, access_key: str | None = None, secret_key: str | None = None) -> StorePlace:
        """The bucket as the product's code is told of it, with the administrator's key unless said otherwise."""
        return StorePlace(
            bucket=bucket,
            endpoint=self.endpoint,
            region=REGION,
            access_key=self.access_key if access_key is None else access_key,
            secret_key=self.secret_key if secret_key is None else secret_key,
        )

    def make_bucket(self, stem: str = "test") -> str:
        """A new, empty bucket; its name."""
        name = f"{stem}-{uuid.uuid4().hex[:10]}"
        self.client().create_bucket(Bucket=name)
        return name

    def upload_folder(self, folder: Path, bucket: str, prefix: str = "") -> None:
        """Every file directly in ``folder``, as ``prefix`` + its name."""
        client = self.client()
        for path in sorted(folder.iterdir()):
            client.put_object(Bucket=bucket, Key=f"{prefix}{path.name}", Body=path.read_bytes())

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """Names of the objects, sorted."""
        return sorted(o["Key"] for o in self.client().list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", ()))


@contextmanager
def start_object_store(folder: Path, *, port: int | None = None) -> Iterator[ObjectStore]:
    """Runs a store with its data under ``folder`` until the block ends; ``port`` None takes a free one."""
    ports = [free_port() for _ in _PORTS]
    ports[-1] = ports[-1] if port is None else port
    store = ObjectStore("http://127.0.0.1" if port == 80 else f"http://127.0.0.1:{ports[-1]}")
    (folder / "s3.json").write_text(json.dumps(_identities(store)))
    (folder / "data").mkdir()
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen(
            _command(folder, ports), stdout=log, stderr=subprocess.STDOUT, cwd=folder, start_new_session=True
        )
        try:
            _wait_until_usable(store, process, folder / "weed.log")
            yield store
        finally:
            with suppress(ProcessLookupError):  # it did not start
                os.killpg(process.pid, signal.SIGKILL)  # its data is thrown away; a graceful stop takes 10 s
            process.wait()


def run_session_store() -> Iterator[ObjectStore]:
    """The body of the session's fixture."""
    folder = Path(tempfile.mkdtemp(prefix="hotstart-s3-"))
    try:
        with start_object_store(folder) as store:
            yield store
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _command(folder: Path, ports: list[int]) -> list[str]:
    beside = Path(sys.executable).with_name("weed")
    weed = str(beside) if beside.exists() else shutil.which("weed") or "weed"
    return [
        *private_tmp.COMMAND,
        *(weed, "-logtostderr=true", "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *(f"-{name}={port}" for name, port in zip(_PORTS, ports, strict=True)),
        *("-master.telemetry=false", "-master.volumeSizeLimitMB=256", "-volume.max=5000", "-volume.preStopSeconds=0"),
        *("-volume.minFreeSpace=1", "-filer=true", "-s3=true", f"-s3.config={folder / 's3.json'}"),
        *("-s3.autoCreateBucket=false", "-s3.port.iceberg=0", "-s3.port.lance=0"),
        f"-s3.localSocket={folder / 's3.sock'}",
    ]


def _identities(store: ObjectStore) -> dict[str, Any]:
    def identity(name: str, access_key: str, secret_key: str, actions: list[str]) -> dict[str, Any]:
        credentials = [{"accessKey": access_key, "secretKey": secret_key}]
        return {"name": name, "credentials": credentials, "actions": actions}

    administrator = identity("administrator", store.access_key, store.secret_key, ["Admin"])
    reader = identity("reader", store.reader_access_key, store.reader_secret_key, ["Read", "List"])
    return {"identities": [administrator, reader]}


def _wait_until_usable(store: ObjectStore, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            store.client().create_bucket(Bucket="store-is-usable")
            return
        except (BotoCoreError, ClientError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
                raise RuntimeError(f"SeaweedFS did not start ({error}):\n{tail}") from error
            time.sleep(0.1)
