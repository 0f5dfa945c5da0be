"""Waiting for conditions: until one holds, until a program that it depends on has ended, or until the time is over."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hotstart.cluster.errors import ClusterError

POLL_SECONDS = 0.03


def until(what: str, condition: Callable[[], bool], check: Callable[[], None], seconds: float = 60.0) -> None:
    """Return when the condition holds. `check` raises when waiting on makes no sense."""
    deadline = time.monotonic() + seconds
    while not condition():
        check()
        if time.monotonic() > deadline:
            raise ClusterError(f"{what} did not come within {seconds:.0f} s: see the logs in the cluster's folder.")
        time.sleep(POLL_SECONDS)


def port_open(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


def socket_open(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as asker:
        try:
            asker.connect(path)
        except OSError:
            return False
        return True


class Api:
    """The few calls to the API server that starting a cluster needs, as the admin."""

    def __init__(self, host: str, port: int, pki: Path) -> None:
        self._host, self._port = host, port
        self._tls = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        self._tls.load_cert_chain(pki / "admin.crt", pki / "admin.key")

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
        """Status and text of the answer; status 0 where nobody answered."""
        connection = http.client.HTTPSConnection(self._host, self._port, timeout=5, context=self._tls)
        try:
            content = json.dumps(body) if body is not None else None
            connection.request(method, path, content, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError:
            return 0, ""
        except http.client.HTTPException:
            return 0, ""
        finally:
            connection.close()

    def ready(self) -> bool:
        return self.call("GET", "/readyz")[0] == 200

    def exists(self, path: str) -> bool:
        return self.call("GET", path)[0] == 200

    def get(self, path: str) -> dict[str, Any] | None:
        """The object at the path; None if there is none."""
        status, text = self.call("GET", path)
        if status == 404:
            return None
        if status != 200:
            raise ClusterError(f"The API server answered {status or 'nothing'} for {path}: {text[:200]}")
        found: dict[str, Any] = json.loads(text)
        return found

    def node_ready(self, name: str) -> bool:
        status, text = self.call("GET", f"/api/v1/nodes/{name}")
        if status != 200:
            return False
        conditions = json.loads(text)["status"].get("conditions", [])
        return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)
