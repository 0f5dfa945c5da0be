"""Process 1 of the namespaces: makes mounts and network, starts the components in their order, then keeps them.

Its end is the end of everything: the kernel kills all that runs in its process namespace, and mounts, links and nft
tables go with their namespaces. It tells `up` of each step through a pipe, a line of JSON each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotstart.cluster import argv, links, mounts, processes, settings, waiting
from hotstart.cluster.argv import Component
from hotstart.cluster.errors import ClusterError
from hotstart.cluster.layout import CONTAINERD_SOCKET, FORWARD_SOCKET, Layout
from hotstart.cluster.plan import API_PORT, CONTROL, DNS_PORT, ETCD_PORT, S3_PORT, NodePlan

RESTART_SECONDS = 1.0


@dataclass(frozen=True)
class Order:
    """What `up` asked for, read from plan.json."""

    api_only: bool
    programs: dict[str, Path]
    weed: str
    pause_archive: str


def read_order(path: Path) -> Order:
    known = json.loads(path.read_text())
    programs = {name: Path(place) for name, place in known["programs"].items()}
    return Order(known["api_only"], programs, known["weed"], known["pause_archive"])


class Running:
    """The components that run, and the way to start one."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._by_pid: dict[int, Component] = {}
        self._handles: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, component: Component) -> None:
        with (self._logs / f"{component.name}.log").open("ab") as log:
            handle = subprocess.Popen(
                component.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                env={"PATH": os.environ["PATH"], "HOME": "/root", **component.environment},
            )
        self._by_pid[handle.pid] = component
        self._handles[handle.pid] = handle

    def check(self) -> None:
        """Raise if a component has ended: while starting, that is the end of `up`."""
        for pid, handle in self._handles.items():
            if handle.poll() is not None:
                name = self._by_pid[pid].name
                log = self._logs / f"{name}.log"
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
                raise ClusterError(f"{name} ended with {handle.returncode}; the end of {log}:\n{tail}")

    def keep(self) -> None:
        """Reap every process that ends, for ever; a component that ends is started again."""
        while True:
            pid, status = os.waitpid(-1, 0)
            component = self._by_pid.pop(pid, None)
            if component is not None:
                code = os.waitstatus_to_exitcode(status)
                # Dropped without its exit status, subprocess would poll it and reap what is awaited here.
                self._handles.pop(pid).returncode = code
                print(f"{component.name} ended with {code}: starting it again", flush=True)
                time.sleep(RESTART_SECONDS)
                self.start(component)


class Progress:
    """The pipe to `up`."""

    def __init__(self, descriptor: int) -> None:
        self._pipe = os.fdopen(descriptor, "w", buffering=1)

    def tell(self, **said: Any) -> None:
        self._pipe.write(json.dumps(said) + "\n")

    def close(self) -> None:
        self._pipe.close()


DNS_BINDING = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRoleBinding",
    "metadata": {"name": "hotstart:dns"},
    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
    "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "hotstart:dns"}],
}


class NodeInit:
    """The steps from bare namespaces to a Ready node."""

    def __init__(self, layout: Layout, node: NodePlan, order: Order, progress: Progress) -> None:
        self._layout, self._node, self._order, self._progress = layout, node, order, progress
        self._running = Running(layout.logs)

    def _wait(self, what: str, holds: Any) -> None:
        waiting.until(what, holds, self._running.check)
        self._progress.tell(step=f"{what} is ready")

    def enter(self) -> None:
        if self._order.api_only:
            mounts.enter_api()
        else:
            mounts.enter_node(self._layout.node(self._node.index), settings.resolv_conf())
        links.make(self._node, self._order.api_only)
        self._progress.tell(step="the namespaces stand")

    def start_first(self) -> None:
        """All that does not need the API server."""
        layout, start = self._layout, self._running.start
        python_path = os.environ.get("PYTHONPATH", "")
        start(argv.etcd(layout, self._order.programs))
        start(argv.forwarder(python_path))
        if not self._order.api_only:
            start(argv.containerd(layout, self._node))
            start(argv.object_store(layout, self._order.weed, python_path))

    def start_api(self) -> None:
        self._wait("etcd", lambda: waiting.port_open("127.0.0.1", ETCD_PORT))
        self._running.start(argv.apiserver(self._layout, self._order.programs, self._order.api_only))
        if not self._order.api_only:
            self._wait("containerd", lambda: waiting.socket_open(CONTAINERD_SOCKET))
            subprocess.run(
                argv.ctr("images", "import", self._order.pause_archive), check=True, stdout=subprocess.DEVNULL
            )
        api = waiting.Api(self._node.address, API_PORT, self._layout.pki)
        self._wait("kube-apiserver", api.ready)
        self._wait("namespace default", lambda: api.exists("/api/v1/namespaces/default/services/kubernetes"))
        self._wait("the forwarder", lambda: waiting.socket_open(FORWARD_SOCKET))

    def start_rest(self) -> None:
        """All that needs the API server."""
        api = waiting.Api(self._node.address, API_PORT, self._layout.pki)
        path = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
        status, text = api.call("POST", path, DNS_BINDING)
        if status not in (201, 409):
            raise ClusterError(f"The API server refused CoreDNS' rights ({status}): {text}")
        programs = self._order.programs
        for component in argv.node_components(self._layout, self._node, programs):
            self._running.start(component)
        for component in argv.control_components(self._layout, programs):
            self._running.start(component)
        self._wait("the object store", lambda: waiting.port_open(self._node.address, S3_PORT))
        self._wait("CoreDNS", lambda: waiting.port_open(self._node.address, DNS_PORT))
        self._wait(self._node.name, lambda: api.node_ready(self._node.name))
        # Without it the first pods of a person would be refused.
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        self._wait("the service account", lambda: api.exists(account))

    def run(self) -> None:
        self.enter()
        self.start_first()
        self.start_api()
        if not self._order.api_only:
            self.start_rest()

    def keep(self) -> None:
        self._running.keep()


def main() -> None:
    layout, progress = Layout(Path(sys.argv[1])), Progress(int(sys.argv[2]))
    # /proc is still the machine's own here: it says which number process 1 has outside.
    outside = processes.process(int(Path("/proc/self").readlink().name))
    assert outside is not None
    node = CONTROL
    layout.node(node.index).root.mkdir(parents=True, exist_ok=True)
    processes.write(layout.node(node.index).init_file, outside)
    init = NodeInit(layout, node, read_order(layout.plan_file), progress)
    try:
        init.run()
    except (ClusterError, OSError, subprocess.CalledProcessError) as problem:
        progress.tell(error=str(problem))
        raise
    progress.tell(ready=True)
    progress.close()
    init.keep()


if __name__ == "__main__":
    main()
