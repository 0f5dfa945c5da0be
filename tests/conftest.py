"""Fixtures that several pieces share. Whatever they start, they end."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hotstart.cluster import lifecycle
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import NodeManager

from tests.support.object_store import ObjectStore, run_session_store

ROOT = Path(__file__).resolve().parents[1]
CLUSTERS = ("tests/cluster/", "tests/e2e/", "tests/images/")

# How long an example takes says nothing here: the machine may do other things meanwhile.
settings.register_profile("hotstart", deadline=None)
settings.load_profile("hotstart")


def pytest_configure() -> None:
    """SIGTERM ends a run as Ctrl-C does: what the fixtures started is ended too, and gets the time for it.

    The processes of a run are ended by SIGINT, which a shell's background job would have them ignore.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    NodeManager.EXIT_TIMEOUT = 60


class ByFile(LoadFileScheduling):
    """Processes share the tests by files, for fixtures are a file's; whole clusters are all one's."""

    def _split_scope(self, nodeid: str) -> str:
        scope: str = "clusters" if nodeid.startswith(CLUSTERS) else super()._split_scope(nodeid)
        return scope


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    """`make test` runs three processes."""
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole clusters first: they take longest, and wait for much."""
    items.sort(key=lambda item: not item.nodeid.startswith(CLUSTERS))


@dataclass(frozen=True)
class ApiServer:
    """A real etcd and kube-apiserver on this machine, with Hotstart's kinds; no controllers, no nodes."""

    kubeconfig: Path
    kubectl: Path

    def try_kubectl(self, *arguments: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run kubectl against this server; the caller looks at the exit status."""
        command = (str(self.kubectl), f"--kubeconfig={self.kubeconfig}", *map(str, arguments))
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)

    def run_kubectl(self, *arguments: str | Path, stdin: str | None = None) -> str:
        """Run kubectl against this server and return what it printed; a failure fails the test with its words."""
        done = self.try_kubectl(*arguments, stdin=stdin)
        assert done.returncode == 0, f"kubectl {' '.join(map(str, arguments))}: {done.stderr}"
        return done.stdout


@pytest.fixture(scope="session")
def api_server() -> Iterator[ApiServer]:
    """One API server for all tests of a session; each test takes a namespace of its own (fixture `namespace`)."""
    parent = ROOT / "build" / "tests"
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="api-", dir=parent))
    try:
        cluster = lifecycle.up(folder, lifecycle.Wanted(api_only=True))
        server = ApiServer(kubeconfig=Path(cluster.kubeconfig), kubectl=Path(cluster.bin) / "kubectl")
        server.run_kubectl("apply", "--server-side", "-f", ROOT / "crds")
        server.run_kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", ROOT / "crds")
        yield server
    finally:
        lifecycle.down(folder)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def namespace(api_server: ApiServer) -> str:
    """The name of a new, empty namespace of the API server."""
    name = f"test-{uuid.uuid4().hex[:10]}"
    api_server.run_kubectl("create", "namespace", name)
    return name


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    """One SeaweedFS for all tests of a session; each test makes a bucket of its own."""
    yield from run_session_store()
