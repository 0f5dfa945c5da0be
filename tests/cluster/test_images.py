"""Images come into the cluster without a registry: the decisions, and (e2e) a pod that runs from one."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hotstart.cluster import cgroups, images, lifecycle, oci, snapshots
from hotstart.cluster.cluster import Cluster
from hotstart.cluster.layout import Layout

Machine = Any
NAME = "localhost/hotstart/cluster-test:1"


def test_the_chain_of_one_layer_is_the_layer_itself() -> None:
    first, second = "sha256:" + "a" * 64, "sha256:" + "b" * 64

    assert oci.chain_ids([first]) == (first,)
    assert oci.chain_ids([first, second]) == (first, oci.digest(f"{first} {second}".encode()))


def test_the_folder_of_a_snapshot_is_read_from_its_mount() -> None:
    bind = "mount -t bind /var/lib/containerd/x/snapshots/1/fs /mnt -o rw,rbind"
    overlay = "mount -t overlay overlay /mnt -o workdir=/c/2/work,upperdir=/c/2/fs,lowerdir=/c/1/fs"

    assert snapshots.upper_folder(bind) == "/var/lib/containerd/x/snapshots/1/fs"
    assert snapshots.upper_folder(overlay) == "/c/2/fs"


def test_layers_are_listed_bottom_first_and_only_if_all_stand(tmp_path: Path) -> None:
    rows = [{"id": "base", "diff-digest": "sha256:1"}, {"id": "top", "parent": "base", "diff-digest": "sha256:2"}]
    (tmp_path / "overlay/top/diff").mkdir(parents=True)

    assert snapshots.layers_of("top", rows, tmp_path) is None

    (tmp_path / "overlay/base/diff").mkdir(parents=True)
    found = snapshots.layers_of("top", rows, tmp_path)
    assert found is not None
    assert [layer.diff_id for layer in found] == ["sha256:1", "sha256:2"]


def test_an_image_whose_layers_are_others_takes_the_slow_way(tmp_path: Path) -> None:
    for name, text in (
        ("overlay-images/images.json", [{"id": "i", "layer": "top"}]),
        ("overlay-layers/layers.json", [{"id": "top", "diff-digest": "sha256:1"}]),
    ):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(json.dumps(text))
    (tmp_path / "overlay/top/diff").mkdir(parents=True)
    config = json.dumps({"rootfs": {"diff_ids": ["sha256:1"]}})
    manifest = json.dumps({"config": {"digest": oci.digest(config.encode())}})
    other = json.dumps({"rootfs": {"diff_ids": ["sha256:other"]}})

    assert snapshots.stored("n", "i", {"Manifest": manifest, "Config": config}, tmp_path) is not None
    assert snapshots.stored("n", "i", {"Manifest": manifest, "Config": other}, tmp_path) is None
    assert snapshots.stored("n", "i", {"Manifest": "{}", "Config": config}, tmp_path / "nowhere") is None


def cluster_of(layout: Layout) -> Cluster:
    return Cluster(
        dir=str(layout.root),
        init_pid=1,
        api_only=False,
        kubernetes_version="v",
        node_name="n",
        node_address="a",
        api_port=1,
        api_endpoint="e",
        api_endpoint_in_cluster="e",
        kubeconfig="k",
        kubeconfig_in_cluster="k",
        bin="b",
        s3=None,
    )


def test_images_that_are_loaded_at_once_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(tmp_path)
    said: list[str] = []
    other: list[threading.Thread] = []

    def load(name: str) -> None:
        images.load(cluster_of(layout), name, said.append)

    def load_packed(cluster: Cluster, name: str, archive: Path) -> None:
        archive.write_text(name)
        if not other:
            other.append(threading.Thread(target=load, args=("second:1",)))
            other[0].start()
            while not said:
                other[0].join(0.01)
            assert archive.read_text() == name

    monkeypatch.setattr(images, "_shown", lambda name: {"FromImageID": f"id of {name}"})
    monkeypatch.setattr(images, "_store", lambda: tmp_path)
    monkeypatch.setattr(snapshots, "stored", lambda *_: None)
    monkeypatch.setattr(images, "_load_packed", load_packed)

    load("first:1")
    other[0].join()

    assert said == ["waiting for another image that is being loaded", "loaded first:1", "loaded second:1"]
    assert json.loads(layout.loaded_images.read_text()) == {"first:1": "id of first:1", "second:1": "id of second:1"}


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """The folder of a cluster that takes every image."""
    monkeypatch.setattr(images, "_shown", lambda name: {"FromImageID": f"id of {name}"})
    monkeypatch.setattr(images, "_store", lambda: tmp_path)
    monkeypatch.setattr(snapshots, "stored", lambda *_: None)
    monkeypatch.setattr(images, "_load_packed", lambda cluster, name, archive: archive.touch())
    return Layout(tmp_path)


def test_a_list_of_loaded_images_that_was_cut_short_is_written_anew(packed: Layout) -> None:
    packed.loaded_images.write_text("")

    images.load(cluster_of(packed), "first:1")

    assert json.loads(packed.loaded_images.read_text()) == {"first:1": "id of first:1"}


def test_a_full_disk_leaves_the_list_of_loaded_images_as_it_was(
    packed: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    images.load(cluster_of(packed), "first:1")

    def fill(place: Path, text: str) -> None:
        place.open("w").close()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", fill)
    with pytest.raises(OSError, match="No space left"):
        images.load(cluster_of(packed), "second:1")

    assert json.loads(packed.loaded_images.read_text()) == {"first:1": "id of first:1"}


@pytest.fixture
def image(tmp_path: Path) -> Iterator[str]:
    """An image in buildah's store that has a shell and nothing else."""
    if shutil.which("buildah") is None:
        pytest.fail("needs buildah: run cluster/install-debian-packages")
    shell = shutil.which("bash") or "/bin/bash"
    linked = subprocess.run(("ldd", shell), capture_output=True, text=True, check=True).stdout
    for file in (shell, *re.findall(r"(/\S+) \(0x", linked)):
        target = tmp_path / file.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)

    def buildah(*arguments: str) -> str:
        ended = subprocess.run(("buildah", *arguments), capture_output=True, text=True, check=True)
        return ended.stdout.strip()

    container = buildah("from", "scratch")
    buildah("copy", "--quiet", container, str(tmp_path), "/")
    buildah("config", "--entrypoint", json.dumps([shell, "-c"]), container)
    buildah("commit", "--quiet", container, NAME)
    buildah("rm", container)
    yield NAME
    buildah("rmi", "--force", NAME)


def pod(name: str, script: str) -> dict[str, Any]:
    container = {
        "name": "c",
        "image": NAME,
        "imagePullPolicy": "Never",
        "args": [script],
        "resources": {"limits": {"cpu": "200m", "memory": "64Mi"}},
    }
    spec = {"terminationGracePeriodSeconds": 0, "restartPolicy": "Never", "containers": [container]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def phase(cluster: Cluster, name: str) -> str:
    found = cluster.api().get(f"/api/v1/namespaces/default/pods/{name}")
    return "" if found is None else str(found["status"]["phase"])


LIMITS = {"cpu.cfs_quota_us": "20000", "cpu.max": "20000 100000"}


def held_back(folder: Path, name: str) -> bool:
    try:
        if (folder / name).read_text().strip() != LIMITS[name]:
            return False
        counts = dict(line.split() for line in (folder / "cpu.stat").read_text().splitlines())
    except OSError:  # a pod that ends takes its cgroup away
        return False
    return int(counts["nr_throttled"]) > 0


def throttled(layout: Layout) -> bool:
    """Whether the kernel held back a container that has a fifth of a processor."""
    walks = (found for top in cgroups.present(layout.cgroup) for found in os.walk(top))
    return any(held_back(Path(folder), name) for folder, _, files in walks for name in files if name in LIMITS)


@pytest.mark.e2e
@pytest.mark.parametrize("way", ["linked", "packed"])
def test_a_pod_runs_from_a_loaded_image_within_its_cpu_limit(
    layout: Layout, machine: Machine, image: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "packed":
        monkeypatch.setattr(snapshots, "stored", lambda *_: None)
    cluster = lifecycle.up(layout.root)
    said: list[str] = []

    images.load(cluster, image, said.append)
    images.load(cluster, image, said.append)

    assert said == [f"loaded {image}", f"{image} is already there"]
    pods = "/api/v1/namespaces/default/pods"
    assert cluster.api().call("POST", pods, pod("ends", "exit 0"))[0] == 201
    assert cluster.api().call("POST", pods, pod("burns", "while :; do :; done"))[0] == 201
    machine.wait_until("the end of the first pod", lambda: phase(cluster, "ends") == "Succeeded")
    machine.wait_until("throttling", lambda: throttled(layout))
    known = machine.namespaces_of(layout)
    lifecycle.down(layout.root)
    assert not machine.left(layout, known)
