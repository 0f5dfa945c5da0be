"""A server that speaks the part of the Hugging Face hub's API that Hotstart uses, with the hub's headers and errors.

As documented at https://huggingface.co/docs/hub/api and in ``huggingface_hub``: a tree of files in pages that a Link
header connects, ``resolve`` that answers small files itself and sends large ones to a content network (here another
port, so another host), ranges, ``X-Error-Code``. What a test wants to go wrong is set in ``Hub``.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "5f" * 20
REPOSITORY = "team/code"
LARGE = 1000  # bytes from which a file is one of LFS
PAGE = 2  # files on a page of the tree


@dataclass
class Hub:
    """One repository at one commit, and how the server behaves."""

    files: dict[str, bytes]
    token: str = ""  # '' lets everyone read
    gated: bool = False
    listed: dict[str, bytes] | None = None  # what the tree says, where it is not what is served
    break_after: int = 0  # bytes of a body after which the connection ends; 0 never
    ranges: bool = True  # whether the content network knows ranges
    busy: int = 0  # requests that are answered 503
    address: str = ""
    network: str = ""
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # path, range, authorization


@contextmanager
def serve_hub(hub: Hub) -> Iterator[Hub]:
    """Serves ``hub`` on two free ports until the block ends."""
    servers = [_make_server(hub), _make_server(hub)]
    hub.address, hub.network = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    threads = [threading.Thread(target=server.serve_forever, args=(0.02,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()


def _make_server(hub: Hub) -> ThreadingHTTPServer:
    return ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        hub, url = self.hub, urlsplit(self.path)
        path = unquote(url.path)
        authorization = self.headers.get("Authorization", "")
        hub.asked.append((path, self.headers.get("Range", ""), authorization))
        if hub.busy:
            hub.busy -= 1
            self._refuse(503, "")
        elif path.startswith("/lfs/"):
            self._send(hub.files[path.removeprefix("/lfs/")], ranges=hub.ranges)
        elif hub.token and authorization != f"Bearer {hub.token}":
            self._refuse(401, "RepoNotFound")
        elif hub.gated:
            self._refuse(403, "GatedRepo")
        else:
            self._answer(path, parse_qs(url.query))

    def _answer(self, path: str, query: dict[str, list[str]]) -> None:
        tree, resolve = f"/api/models/{REPOSITORY}/tree/", f"/{REPOSITORY}/resolve/"
        prefix = next((prefix for prefix in (tree, resolve) if path.startswith(prefix)), None)
        commit, _, inside = path.removeprefix(prefix or "").partition("/")
        if prefix is None:
            self._refuse(404, "RepoNotFound")
        elif commit != COMMIT:
            self._refuse(404, "RevisionNotFound")
        elif prefix == tree:
            self._tree(inside, query)
        else:
            self._resolve(inside)

    def _tree(self, folder: str, query: dict[str, list[str]]) -> None:
        listed = self.hub.files if self.hub.listed is None else self.hub.listed
        prefix = f"{folder}/" if folder else ""
        inside = {name: body for name, body in listed.items() if name.startswith(prefix)}
        if not inside:
            self._refuse(404, "EntryNotFound")
            return
        folders = sorted({prefix + n.removeprefix(prefix).split("/")[0] for n in inside if "/" in n[len(prefix) :]})
        entries: list[dict[str, Any]] = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": f} for f in folders]
        entries += [_entry(n, body) for n, body in inside.items() if "/" not in n[len(prefix) :]]
        start = int(query.get("cursor", ["0"])[0])
        more = {}
        if start + PAGE < len(entries):
            more["Link"] = f'<{self.hub.address}{urlsplit(self.path).path}?cursor={start + PAGE}>; rel="next"'
        self._send(json.dumps(entries[start : start + PAGE]).encode(), more)

    def _resolve(self, name: str) -> None:
        body = self.hub.files.get(name)
        if body is None:
            self._refuse(404, "EntryNotFound")
            return
        if len(body) < LARGE:
            self._send(body, {"X-Repo-Commit": COMMIT})
            return
        self.send_response(302)
        self.send_header("Location", f"{self.hub.network}/lfs/{name}")
        self.send_header("X-Linked-Size", str(len(body)))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, body: bytes, headers: dict[str, str] | None = None, *, ranges: bool = True) -> None:
        asked = self.headers.get("Range", "") if ranges else ""
        start = int(asked.removeprefix("bytes=").rstrip("-") or 0)
        self.send_response(206 if asked else 200)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        rest = body[start:]
        if self.hub.break_after and len(rest) > self.hub.break_after:
            rest = rest[: self.hub.break_after]
            self.close_connection = True
        self.wfile.write(rest)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base class's name
        """Says nothing."""


def _entry(name: str, body: bytes) -> dict[str, Any]:
    if len(body) < LARGE:
        oid = hashlib.sha1(f"blob {len(body)}\0".encode() + body).hexdigest()
        return {"type": "file", "oid": oid, "size": len(body), "path": name}
    sha256 = hashlib.sha256(body).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(body)}\n".encode()
    oid = hashlib.sha1(f"blob {len(pointer)}\0".encode() + pointer).hexdigest()
    lfs = {"oid": sha256, "size": len(body), "pointerSize": len(pointer)}
    return {"type": "file", "oid": oid, "size": len(body), "path": name, "lfs": lfs}
