"""From a CompletionModel's creation to the operator's first write, over 20 models. Needs the cluster of `make demo`.

From before the request that creates it to the first change of its status that a watch sees; both times are taken by
this process, so that the API server's own work is in the figure.
"""

from __future__ import annotations

import sys
import threading
import time
import uuid

import kubernetes
import record
import yaml
from hotstart.cluster.cluster import Cluster
from hotstart.cluster.errors import ClusterError
from hotstart.demo import stage
from hotstart.demo.kube import Kube

MODELS = 20
GROUP = {"group": "hotstart.dev", "version": "v1alpha1", "plural": "completionmodels"}


class FirstWrites:
    """Watches the namespace's models; for each, when its status was first written."""

    def __init__(self, api: kubernetes.client.CustomObjectsApi, namespace: str) -> None:
        self._api, self._namespace = api, namespace
        self._watch = kubernetes.watch.Watch()
        self.seen: dict[str, float] = {}
        self.complete = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        call = self._api.list_namespaced_custom_object
        for event in self._watch.stream(call, namespace=self._namespace, timeout_seconds=120, **GROUP):
            model = event["object"]
            if model.get("status"):
                self.seen.setdefault(model["metadata"]["name"], time.monotonic())
            if len(self.seen) == MODELS:
                self.complete.set()
                return


def measure(cluster: Cluster, namespace: str) -> list[float]:
    """Milliseconds for each model."""
    kubernetes.config.load_kube_config(cluster.kubeconfig)
    api = kubernetes.client.CustomObjectsApi()
    manifest = yaml.safe_load((stage.ROOT / "examples" / "demo.yaml").read_text())
    writes, created = FirstWrites(api, namespace), {}
    for index in range(MODELS):
        name = f"bench-{index}"
        body = {**manifest, "metadata": {"name": name}}
        created[name] = time.monotonic()
        api.create_namespaced_custom_object(namespace=namespace, body=body, **GROUP)
        deadline = created[name] + 10
        while name not in writes.seen and time.monotonic() < deadline:
            time.sleep(0.001)
    if not writes.complete.wait(60):
        raise TimeoutError(f"the operator wrote to {len(writes.seen)} of {MODELS} models in 60 s")
    return sorted((writes.seen[name] - at) * 1000 for name, at in created.items())


def main() -> int:
    """Measures and records."""
    try:
        cluster = Cluster.load(stage.ROOT / "build" / "cluster")
    except ClusterError as problem:
        print(f"{problem} (`make demo` does, and leaves it up)", file=sys.stderr)
        return 1
    kube, namespace = Kube(), f"bench-{uuid.uuid4().hex[:6]}"
    kube.use(cluster)
    kube.apply(stage.namespace_yaml(namespace, restricted=True))
    try:
        values = measure(cluster, namespace)
    finally:
        kube.run("kubectl", "delete", "namespace", namespace, "--wait=false")
    figures = {"models": MODELS, "median_ms": record.median(values), "max_ms": round(values[-1], 1)}
    record.write("first_write", figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
