"""A running cluster as a value: where it is reached, with which keys; read from and written to `cluster.json`."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path

from hotstart.cluster import processes
from hotstart.cluster.errors import ClusterError
from hotstart.cluster.layout import Layout
from hotstart.cluster.waiting import Api


@dataclass(frozen=True)
class S3:
    """The object store: as seen from the machine, and as seen from pods."""

    endpoint: str
    endpoint_in_cluster: str
    access_key: str
    secret_key: str
    reader_access_key: str
    reader_secret_key: str
    region: str = "us-east-1"
    models_bucket: str = "models"


@dataclass(frozen=True)
class Cluster:
    """What programs need to use the cluster. Paths are absolute."""

    dir: str
    init_pid: int
    api_only: bool
    kubernetes_version: str
    node_name: str
    node_address: str
    api_port: int
    api_endpoint: str
    api_endpoint_in_cluster: str
    kubeconfig: str
    kubeconfig_in_cluster: str
    bin: str
    s3: S3 | None

    @classmethod
    def load(cls, directory: Path | str = "build/cluster") -> Cluster:
        """The running cluster of the folder."""
        layout = Layout(Path(directory).resolve())
        known = read(layout)
        if known is None:
            raise ClusterError(f"No cluster runs in {layout.root}: start it with `hotstart-cluster up`.")
        return known

    @property
    def layout(self) -> Layout:
        return Layout(Path(self.dir))

    def api(self) -> Api:
        """The API server as the admin, from the machine."""
        return Api("127.0.0.1", self.api_port, self.layout.pki)

    def environment(self) -> dict[str, str]:
        """What a shell of the machine needs to use the cluster (besides PATH)."""
        values = {"KUBECONFIG": self.kubeconfig, "HOTSTART_CLUSTER_DIR": self.dir}
        if self.s3:
            values |= {
                "HOTSTART_S3_ENDPOINT": self.s3.endpoint,
                "HOTSTART_S3_ENDPOINT_IN_CLUSTER": self.s3.endpoint_in_cluster,
                "AWS_ACCESS_KEY_ID": self.s3.access_key,
                "AWS_SECRET_ACCESS_KEY": self.s3.secret_key,
                "AWS_REGION": self.s3.region,
            }
        return values


def read(layout: Layout) -> Cluster | None:
    """The cluster of the folder if its keeper and its init run, else None."""
    if processes.read(layout.keeper_file) is None or processes.read(layout.node(0).init_file) is None:
        return None
    try:
        known = json.loads(layout.cluster_file.read_text())
    except FileNotFoundError:
        return None
    store = known.pop("s3")
    return Cluster(**known, s3=S3(**store) if store else None)


def env_text(cluster: Cluster) -> str:
    """The text of `env`, for a person's shell: `. build/cluster/env`."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in cluster.environment().items()]
    place = shlex.quote(cluster.bin)
    path = f'case ":$PATH:" in *:{place}:*) ;; *) export PATH={place}:"$PATH" ;; esac'
    return "\n".join(("# Made by `hotstart-cluster up`. Use it with: . build/cluster/env", *lines, path, ""))


def write_whole(place: Path, text: str) -> None:
    """Write a file that only its owner reads; killed at any point, it leaves the file as it was before."""
    unfinished = place.with_name(f".{place.name}.new")
    unfinished.touch(mode=0o600)
    unfinished.write_text(text)
    unfinished.rename(place)


def write(cluster: Cluster) -> None:
    """Write `env` and, as the last of all, `cluster.json`, which says that the cluster stands."""
    layout = cluster.layout
    write_whole(layout.env_file, env_text(cluster))
    write_whole(layout.cluster_file, json.dumps(asdict(cluster), indent=2) + "\n")
