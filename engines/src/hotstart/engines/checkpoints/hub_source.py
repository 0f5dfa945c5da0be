"""A checkpoint in a repository of the Hugging Face hub, at one commit.

Two calls of the hub's API are used: ``/api/models/ORG/NAME/tree/COMMIT`` lists files with git's sha1 and, for large
files, the sha256 of LFS; ``/ORG/NAME/resolve/COMMIT/FILE`` gives a file's bytes, mostly by a redirect to a content
network (https://huggingface.co/docs/hub/api). ``huggingface_hub`` is not used: it writes files to a cache of its own,
and would need disk where an inspection only wants digests. A token goes to the hub alone, never along a redirect.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from hotstart.engines.checkpoints.choose import ListedFile
from hotstart.engines.checkpoints.places import HubPlace
from hotstart.engines.checkpoints.source import BLOCK, STREAMS, BrokenStream, HubAccess, pick_files
from hotstart.engines.errors import EngineError, Reason, Retryable, Terminal
from hotstart.engines.s3 import first_line

CONNECT_TIMEOUT = 5.0  # seconds
READ_TIMEOUT = 30.0  # seconds
REDIRECTS = 5
ATTEMPTS = 3
BUSY = (429, 500, 502, 503, 504)
MOST_FILES = 10_000
_NEXT = re.compile(r'<([^>]+)>\s*;\s*rel="next"')


class HubSource:
    """Implements ``Source``."""

    def __init__(self, place: HubPlace, access: HubAccess) -> None:
        self._place = place
        self._access = access
        self._endpoint = access.endpoint.rstrip("/")
        self._pool = make_pool(self._endpoint)

    @property
    def where(self) -> str:
        return self._place.uri

    def list_files(self) -> tuple[ListedFile, ...]:
        place = self._place
        path = f"{place.repository}/tree/{place.commit}/{quote(place.prefix)}".rstrip("/")
        url: str | None = f"{self._endpoint}/api/models/{path}"
        entries: list[dict[str, Any]] = []
        while url:
            if urlsplit(url).netloc != urlsplit(self._endpoint).netloc or len(entries) > MOST_FILES:
                raise self._unexpected("its list of files leads elsewhere or does not end")
            response = self._get(url, f"list {place.uri}", preload_content=True)
            entries += self._parse(response.data)
            following = _NEXT.search(response.headers.get("Link", ""))
            url = urljoin(url, following[1]) if following else None
        files = [_listed(entry, place.prefix) for entry in entries if entry.get("type") == "file"]
        return pick_files(place, files)

    def blocks(self, file: ListedFile, start: int) -> Iterator[bytes]:
        place = self._place
        url = f"{self._endpoint}/{place.repository}/resolve/{place.commit}/{quote(place.prefix + file.name)}"
        wanted = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        response = self._get(url, f"read {file.name} of {place.uri}", wanted)
        skip = start if response.status == 200 else 0  # a server that knows no ranges begins anew
        try:
            for block in response.stream(BLOCK, decode_content=False):
                yield block[skip:]
                skip = max(skip - len(block), 0)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise BrokenStream(first_line(error)) from error
        finally:
            response.close()

    def local_path(self, file: ListedFile) -> Path | None:
        return None

    def check_unchanged(self, file: ListedFile) -> None:
        """What was downloaded stays as it is."""

    def _get(
        self, url: str, what: str, headers: dict[str, str] | None = None, *, preload_content: bool = False
    ) -> urllib3.BaseHTTPResponse:
        sent = {"User-Agent": "hotstart", **(headers or {})}
        if self._access.token:
            sent["Authorization"] = f"Bearer {self._access.token}"
        try:
            response = self._pool.request("GET", url, headers=sent, preload_content=preload_content)
        except urllib3.exceptions.LocationParseError as error:
            raise Terminal(
                Reason.INVALID_SPEC, f"Cannot {what}: checkpoint.endpoint {self._endpoint!r} is no URL."
            ) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Retryable(
                Reason.STORE_UNREACHABLE,
                f"Cannot {what}: {self._endpoint} does not answer ({first_line(error)}). Check the endpoint, DNS, "
                "proxy settings and network policies.",
            ) from error
        if response.status in (200, 206):
            return response
        status, code = response.status, response.headers.get("X-Error-Code", "")
        response.close()
        raise make_hub_error(status, code, what, self._place, self._access)

    def _parse(self, body: bytes) -> list[dict[str, Any]]:
        try:
            entries = json.loads(body)
        except ValueError as error:
            raise self._unexpected("its list of files is no JSON") from error
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise self._unexpected("its list of files has another form")
        return entries

    def _unexpected(self, what: str) -> Retryable:
        return Retryable(
            Reason.STORE_UNREACHABLE,
            f"{self._endpoint} does not answer like a hub: {what}. Correct checkpoint.endpoint.",
        )


def make_pool(endpoint: str) -> urllib3.PoolManager:
    """Connections with retries, redirects and the environment's proxy."""
    retries = urllib3.Retry(
        total=ATTEMPTS + REDIRECTS, connect=ATTEMPTS, read=ATTEMPTS, redirect=REDIRECTS, status=ATTEMPTS,
        status_forcelist=BUSY, backoff_factor=0.3, raise_on_status=False,
    )  # fmt: skip
    timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT, read=READ_TIMEOUT)
    parts = urlsplit(endpoint)
    proxy = getproxies().get(parts.scheme, "")
    if proxy and not proxy_bypass(parts.hostname or ""):
        return urllib3.ProxyManager(proxy, retries=retries, timeout=timeout, maxsize=STREAMS)
    return urllib3.PoolManager(retries=retries, timeout=timeout, maxsize=STREAMS)


def make_hub_error(status: int, code: str, what: str, place: HubPlace, access: HubAccess) -> EngineError:
    """Reason and remedy for an answer of the hub; ``code`` is its X-Error-Code. Pure."""
    page = f"{access.endpoint.rstrip('/')}/{place.repository}"
    if code == "GatedRepo":
        message = f"{place.repository} is gated: ask for access at {page}, and put the token of that user as HF_TOKEN "
        return Retryable(Reason.ACCESS_DENIED, f"Cannot {what}: {message}into {access.credentials_from}.")
    if status in (401, 403):
        wrong = "the hub refuses its HF_TOKEN" if access.token else "it is private or does not exist"
        remedy = f"Correct checkpoint.uri, or HF_TOKEN in {access.credentials_from}."
        return Retryable(Reason.ACCESS_DENIED, f"Cannot {what}: {wrong}. {remedy}")
    if status == 404:
        missing = {
            "RevisionNotFound": f"{place.repository} has no commit {place.commit}",
            "EntryNotFound": "there is no such file or folder at that commit",
        }.get(code, f"there is no repository {place.repository} at {access.endpoint}")
        return Retryable(Reason.CHECKPOINT_NOT_FOUND, f"Cannot {what}: {missing}. Correct checkpoint.uri.")
    if status == 429:
        return Retryable(
            Reason.STORE_UNREACHABLE,
            f"Cannot {what}: the hub allows no more requests for now. A token as HF_TOKEN in "
            f"{access.credentials_from} raises the limit.",
        )
    return Retryable(
        Reason.STORE_UNREACHABLE, f"Cannot {what}: {access.endpoint} answered {status} {code}".strip() + "."
    )


def _listed(entry: dict[str, Any], prefix: str) -> ListedFile:
    lfs = entry.get("lfs") or {}
    name = str(entry.get("path", "")).removeprefix(prefix)
    size = int(lfs.get("size", entry.get("size", 0)))
    oid = str(entry.get("oid", ""))
    return ListedFile(name, size, etag=oid, sha256=str(lfs.get("oid", "")), git_oid=oid)
