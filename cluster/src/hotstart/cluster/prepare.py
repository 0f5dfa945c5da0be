"""The files that a new cluster reads, written before it starts: keys, certificates, settings, the order to its init."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path

from hotstart.cluster import certificates, pause_image, preflight, settings
from hotstart.cluster.layout import Layout
from hotstart.cluster.plan import CONTROL, NodePlan, api_endpoint

# Each of these has a certificate of the same name; all of them run inside the namespaces.
KUBECONFIGS = ("admin", "controller-manager", "scheduler", "proxy", "dns", f"kubelet-{CONTROL.index}")


def write_kubeconfig(layout: Layout, place: Path, credential: str, server: str) -> None:
    """Write a kubeconfig that only its owner can read."""
    pki = layout.pki
    parts = [(pki / name).read_bytes() for name in ("ca.crt", f"{credential}.crt", f"{credential}.key")]
    place.touch(mode=0o600)
    place.write_text(settings.kubeconfig(server, *parts))


def make_keys() -> settings.S3Keys:
    return settings.S3Keys(
        admin_access_key="hotstart" + secrets.token_hex(6),
        admin_secret_key=secrets.token_hex(20),
        reader_access_key="reader" + secrets.token_hex(6),
        reader_secret_key=secrets.token_hex(20),
    )


def _write_node(layout: Layout, node: NodePlan) -> None:
    cni, config = layout.node(node.index).cni, layout.config
    lower = preflight.can_lower_oom_score()
    for place, text in (
        (config / f"kubelet-{node.index}.json", settings.kubelet(layout, node)),
        (config / f"proxy-{node.index}.json", settings.proxy(layout, node)),
        (config / f"containerd-{node.index}.toml", settings.containerd(cni, str(preflight.PLUGINS), lower)),
        (cni / "10-pods.conflist", settings.cni(node)),
    ):
        place.write_text(text)


def _private(place: Path, text: str) -> None:
    place.touch(mode=0o600)
    place.write_text(text)


def write_all(layout: Layout, api_only: bool, programs: Mapping[str, Path], weed: str | None) -> settings.S3Keys:
    """Write every file that the init and the components read; returns the keys of the object store."""
    keys, config = make_keys(), layout.config
    certificates.write_all(layout.pki, CONTROL)
    for folder in (config, layout.logs, layout.bin, layout.node(CONTROL.index).cni, layout.s3, layout.etcd):
        folder.mkdir(parents=True, mode=0o700)
    for name in ("kubectl", "helm"):
        if name in programs:
            (layout.bin / name).symlink_to(programs[name])
    for name in KUBECONFIGS:
        write_kubeconfig(layout, config / f"{name}.kubeconfig", name, api_endpoint())
    pause_archive = config / "pause.tar"
    if not api_only:
        pause_image.write(programs["pause"], pause_archive)
        _write_node(layout, CONTROL)
        (config / "Corefile").write_text(settings.corefile(layout))
        _private(config / "s3.json", settings.object_store(keys))
    order = {
        "api_only": api_only,
        "programs": {name: str(place) for name, place in programs.items()},
        "weed": weed or "",
        "pause_archive": str(pause_archive),
    }
    layout.plan_file.write_text(json.dumps(order, indent=2) + "\n")
    return keys
