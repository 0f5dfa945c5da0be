"""The forwarder outlives whatever is asked of it, and its own death."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import pytest
from hotstart.cluster import waiting

WaitUntil = Callable[[str, Callable[[], bool]], None]


def start(
    place: Path, limit: tuple[str, ...] = (), said: int | IO[bytes] = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    return subprocess.Popen((*limit, sys.executable, "-m", "hotstart.cluster.forwarder", str(place)), stdout=said)


@pytest.fixture
def place(tmp_path: Path, wait_until: WaitUntil) -> Iterator[Path]:
    """The socket of a running forwarder."""
    place = tmp_path / "forward.sock"
    running = start(place)
    wait_until("the forwarder", lambda: waiting.socket_open(str(place)))
    yield place
    running.kill()
    running.wait()


def ask(place: Path, request: bytes, handed: tuple[int, ...] = ()) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as asker:
        asker.settimeout(60)
        asker.connect(str(place))
        socket.send_fds(asker, [request], list(handed))
        answer: dict[str, Any] = json.loads(asker.recv(65536))
    return answer


def test_a_new_forwarder_takes_the_place_of_a_killed_one(tmp_path: Path, wait_until: WaitUntil) -> None:
    place = tmp_path / "forward.sock"
    for _ in range(2):
        running = start(place)
        try:
            wait_until("the forwarder", lambda: waiting.socket_open(str(place)))
        finally:
            running.kill()
            running.wait()
        assert place.exists()


def test_a_forwarder_takes_all_descriptors_that_it_may(tmp_path: Path, wait_until: WaitUntil) -> None:
    place = tmp_path / "forward.sock"
    running = start(place, limit=("prlimit", "--nofile=64:512"))
    try:
        wait_until("the forwarder", lambda: waiting.socket_open(str(place)))
        assert resource.prlimit(running.pid, resource.RLIMIT_NOFILE) == (512, 512)
    finally:
        running.kill()
        running.wait()


def test_a_forwarder_without_a_free_descriptor_goes_on(tmp_path: Path, wait_until: WaitUntil) -> None:
    place, said = tmp_path / "forward.sock", tmp_path / "said"
    with said.open("wb") as out:
        running = start(place, limit=("prlimit", "--nofile=32:32"), said=out)
    try:
        wait_until("the forwarder", lambda: waiting.socket_open(str(place)))
        with ExitStack() as silent:
            for _ in range(40):
                silent.enter_context(socket.socket(socket.AF_UNIX)).connect(str(place))
            wait_until("the last descriptor", lambda: b"Too many open files" in said.read_bytes())

        assert ask(place, b'{"operation": "list"}') == {"forwards": []}
    finally:
        running.kill()
        running.wait()


@pytest.mark.parametrize(
    "request_",
    [
        b"not json",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"operation": "dance"}',
        b'{"operation": "open", "host": "127.0.0.1", "port": 1}',
        b'{"operation": "open", "host": 1, "port": "x"}',
        b'{"operation": "close"}',
    ],
)
def test_a_malformed_request_gets_an_error_and_ends_nothing(place: Path, request_: bytes) -> None:
    assert "error" in ask(place, request_)
    assert ask(place, b'{"operation": "list"}') == {"forwards": []}


def test_what_is_no_listening_socket_is_refused(place: Path) -> None:
    wanted = b'{"operation": "open", "host": "127.0.0.1", "port": 1}'
    read, write = os.pipe()
    try:
        assert "error" in ask(place, wanted, (read,))
    finally:
        os.close(read)
        os.close(write)
    with socket.socket(socket.AF_UNIX) as other:
        assert "error" in ask(place, wanted, (other.fileno(),))
    assert ask(place, b'{"operation": "list"}') == {"forwards": []}


def test_an_asker_that_says_nothing_holds_up_nobody(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(place))
        silent.setblocking(False)

        assert ask(place, b'{"operation": "list"}') == {"forwards": []}

        with pytest.raises(BlockingIOError):  # it was not turned away first
            silent.recv(1)


def test_a_port_is_carried_until_it_is_closed(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as inside, socket.create_server(("127.0.0.1", 0)) as outside:
        request = {"operation": "open", "host": "127.0.0.1", "port": inside.getsockname()[1]}
        local_port = outside.getsockname()[1]
        assert ask(place, json.dumps(request).encode(), (outside.fileno(),)) == {"local_port": local_port}
        outside.close()

        with socket.create_connection(("127.0.0.1", local_port), timeout=60) as person:
            server, _ = inside.accept()
            with server:
                server.settimeout(60)
                person.sendall(b"there")
                assert server.recv(5) == b"there"
                server.sendall(b"back")
                assert person.recv(4) == b"back"

        assert ask(place, json.dumps({"operation": "close", "local_port": local_port}).encode()) == {"closed": True}
        assert ask(place, b'{"operation": "list"}') == {"forwards": []}
