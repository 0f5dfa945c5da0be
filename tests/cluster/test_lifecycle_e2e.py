"""The real thing: what `up` makes works, and what ends it leaves the machine as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import boto3
import pytest
from botocore.config import Config
from hotstart.cluster import forward, lifecycle, processes, status
from hotstart.cluster.cluster import Cluster
from hotstart.cluster.errors import ClusterError
from hotstart.cluster.layout import Layout

Machine = Any

pytestmark = pytest.mark.e2e
COMMAND = (sys.executable, "-m", "hotstart.cluster.cli")


def start(layout: Layout, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen((*COMMAND, "up", "--dir", str(layout.root), *flags), stdout=subprocess.PIPE, text=True)


def read_until(started: subprocess.Popen[str], text: str) -> None:
    assert started.stdout is not None
    for line in started.stdout:
        if text in line:
            return
    raise AssertionError(f"`up` ended before it said: {text}")


def test_down_leaves_nothing_behind(layout: Layout, machine: Machine) -> None:
    cluster = lifecycle.up(layout.root)
    known = machine.namespaces_of(layout)
    assert cluster.api().node_ready(cluster.node_name)
    assert machine.processes_of(layout, known), "the test must see a running cluster"

    assert lifecycle.down(layout.root)

    assert not machine.left(layout, known)
    assert not list(layout.root.iterdir()) if layout.root.exists() else True
    assert not lifecycle.down(layout.root)


def test_killing_the_init_leaves_nothing_behind(layout: Layout, machine: Machine) -> None:
    cluster = lifecycle.up(layout.root)
    known = machine.namespaces_of(layout)

    os.kill(cluster.init_pid, signal.SIGKILL)

    machine.wait_nothing_left(layout, known)
    with pytest.raises(ClusterError, match="hotstart-cluster up"):
        Cluster.load(layout.root)


@pytest.mark.parametrize("step", ["namespaces", "etcd", "containerd", "kube-apiserver", "object store"])
def test_up_killed_in_the_middle_leaves_nothing_behind(layout: Layout, machine: Machine, step: str) -> None:
    started = start(layout)
    read_until(started, step)
    known = machine.namespaces_of(layout)

    started.kill()
    started.wait()

    machine.wait_nothing_left(layout, known)


def test_a_killed_keeper_takes_all_with_it_and_down_mends_the_rest(layout: Layout, machine: Machine) -> None:
    lifecycle.up(layout.root)
    known = machine.namespaces_of(layout)
    keeper = processes.read(layout.keeper_file)
    assert keeper is not None

    os.kill(keeper.pid, signal.SIGKILL)
    machine.wait_until("the end of every process", lambda: not machine.processes_of(layout, known))

    lifecycle.down(layout.root)
    assert not machine.left(layout, known)


def test_up_after_a_killed_cluster_starts_a_new_one(layout: Layout, machine: Machine) -> None:
    first = lifecycle.up(layout.root, lifecycle.Wanted(api_only=True))
    os.kill(first.init_pid, signal.SIGKILL)
    machine.wait_until("the end of the first", lambda: processes.read(layout.keeper_file) is None)

    second = lifecycle.up(layout.root, lifecycle.Wanted(api_only=True))

    assert second.init_pid != first.init_pid
    assert second.api().ready()


def test_a_second_up_does_nothing(layout: Layout) -> None:
    first = lifecycle.up(layout.root, lifecycle.Wanted(api_only=True))
    written = layout.cluster_file.stat().st_mtime_ns

    assert lifecycle.up(layout.root, lifecycle.Wanted(api_only=True)) == first

    assert layout.cluster_file.stat().st_mtime_ns == written
    with pytest.raises(ClusterError, match="--api-only"):
        lifecycle.up(layout.root)


def test_two_checkouts_at_once_do_not_collide(layout: Layout) -> None:
    folders = [layout.root / "one", layout.root / "two"]
    started = [start(Layout(folder), "--api-only") for folder in folders]
    assert [one.wait() for one in started] == [0, 0]
    try:
        clusters = [Cluster.load(folder) for folder in folders]
        assert clusters[0].api_port != clusters[1].api_port
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "only-in-one"}}
        assert clusters[0].api().call("POST", "/api/v1/namespaces", namespace)[0] == 201
        assert clusters[1].api().get("/api/v1/namespaces/only-in-one") is None
    finally:
        for folder in folders:
            lifecycle.down(folder)


def store_client(cluster: Cluster) -> Any:
    assert cluster.s3 is not None
    return boto3.client(
        "s3",
        endpoint_url=cluster.s3.endpoint,
        region_name=cluster.s3.region,
        aws_access_key_id=cluster.s3.access_key,
        aws_secret_access_key=cluster.s3.secret_key,
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
    )


def test_two_whole_clusters_keep_their_objects_apart(layout: Layout) -> None:
    folders = [layout.root / "one", layout.root / "two"]
    try:
        clusters = [lifecycle.up(folder) for folder in folders]
        clients = [store_client(cluster) for cluster in clusters]
        for client, text in zip(clients, (b"one", b"two"), strict=True):
            client.create_bucket(Bucket="models")
            client.put_object(Bucket="models", Key="word", Body=text)
        for client, text in zip(clients, (b"one", b"two"), strict=True):
            assert client.get_object(Bucket="models", Key="word")["Body"].read() == text
        for cluster in clusters:
            assert cluster.api().node_ready(cluster.node_name)
    finally:
        for folder in folders:
            lifecycle.down(folder)


def test_a_forward_lives_until_it_is_closed(layout: Layout) -> None:
    cluster = lifecycle.up(layout.root, lifecycle.Wanted(api_only=True))

    port = forward.expose(cluster, cluster.node_address, 6443)

    assert forward.resolve(cluster, "default/kubernetes:https") == ("10.96.0.1", 443)
    assert port in {item.local_port for item in forward.exposed(cluster)}
    assert forward.reuse(cluster, cluster.node_address, 6443, port) == port
    assert forward.close(cluster, port)
    assert port not in {item.local_port for item in forward.exposed(cluster)}
    assert not forward.close(cluster, port)


def test_a_keeper_that_dies_first_is_told_with_its_last_words(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = layout.root / "python"
    broken.write_text("#!/bin/sh\necho no Python today >&2\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))

    with pytest.raises(ClusterError, match=r"keeper\.log:\nno Python today"):
        lifecycle.up(layout.root, lifecycle.Wanted(api_only=True))


def forwarder_of(cluster: Cluster) -> int | None:
    """The process that listens on the forwarder's socket."""
    found = [seen.pid for seen in status.inside(cluster.init_pid) if seen.name == "hotstart.cluster.forwarder"]
    return found[0] if found else None


def test_up_opens_the_ports_that_went_with_a_killed_forwarder(layout: Layout, machine: Machine) -> None:
    cluster = lifecycle.up(layout.root, lifecycle.Wanted(api_only=True))
    killed = forwarder_of(cluster)
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    machine.wait_until("another forwarder", lambda: forwarder_of(cluster) not in (None, killed))
    assert not cluster.api().ready()

    assert lifecycle.up(layout.root, lifecycle.Wanted(api_only=True)) == cluster

    assert cluster.api().ready()


def test_the_shell_passes_the_exit_status_on_and_sees_the_node(layout: Layout) -> None:
    lifecycle.up(layout.root)

    inside = (*COMMAND, "shell", "--dir", str(layout.root), "--", "sh", "-c", "kubectl get nodes -o name; exit 7")
    ended = subprocess.run(inside, capture_output=True, text=True, check=False)

    assert (ended.returncode, ended.stdout) == (7, "node/node-0\n")
    outside = subprocess.run(
        ("sh", "-c", f". {layout.env_file} && kubectl get nodes -o name"), capture_output=True, text=True, check=False
    )
    assert outside.stdout == "node/node-0\n"
