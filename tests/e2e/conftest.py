"""One real cluster with Hotstart installed, shared by all end-to-end tests; a namespace for each test."""

from __future__ import annotations

import re
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hotstart.cluster import forward, images, lifecycle
from hotstart.cluster.cluster import Cluster
from hotstart.demo import stage
from hotstart.demo.diagnosis import diagnose
from hotstart.demo.kube import Kube
from hotstart.demo.story import Story
from hotstart.demo.watch import is_ready

from tests.support.tiny_checkpoint import write_tiny_checkpoint

PATIENCE_SECONDS = 90.0


@dataclass(frozen=True)
class Platform:
    """Hotstart on a cluster: what every end-to-end test works with."""

    cluster: Cluster
    kube: Kube
    url: str  # of the router, on this machine

    def wait(
        self,
        what: Callable[[], Any],
        why: str,
        *,
        namespaces: tuple[str, ...] = (),
        patience: float = PATIENCE_SECONDS,
    ) -> Any:
        """The first true value of ``what``; fails with the cluster's own word on the cause."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if found := what():
                return found
            time.sleep(0.1)
        pytest.fail(f"not within {patience:.0f} s: {why}\n{diagnose(self.kube, *namespaces, stage.SYSTEM)}")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster of this test run's own, with the images of the work tree in it."""
    folder = Path(f"build/tests/e2e-{uuid.uuid4().hex[:8]}").resolve()  # not in /tmp: containers cannot layer on tmpfs
    cluster = lifecycle.up(folder)
    try:
        for name in stage.IMAGES:
            images.load(cluster, f"localhost/hotstart/{name}:dev", print)
        yield cluster
    finally:
        lifecycle.down(folder)
        folder.rmdir()


@pytest.fixture(scope="session")
def platform(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Platform:
    """The chart installed by helm; the tiny checkpoint in the store under s3://models/tiny/."""
    kube, s3 = Kube(), stage.make_client(cluster)
    kube.use(cluster)
    for bucket in ("models", stage.STORE_BUCKET):
        s3.create_bucket(Bucket=bucket)
    put_checkpoint(s3, tmp_path_factory.mktemp("tiny"), "tiny/", seed=0)
    stage.install_chart(kube, cluster, Story())
    host, port = forward.resolve(cluster, f"{stage.SYSTEM}/hotstart-router:8080")
    return Platform(cluster, kube, f"http://127.0.0.1:{forward.reuse(cluster, host, port, 0)}")


def put_checkpoint(s3: Any, folder: Path, prefix: str, *, seed: int) -> None:
    """A seeded checkpoint under s3://models/<prefix>."""
    write_tiny_checkpoint(folder, seed=seed)
    for path in folder.iterdir():
        s3.upload_file(str(path), "models", prefix + path.name)


class Tenant:
    """One namespace with the `restricted` standard, and a model in it."""

    def __init__(self, platform: Platform, namespace: str, name: str = "tiny") -> None:
        self.platform, self.kube, self.namespace, self.name = platform, platform.kube, namespace, name

    def put_secret(self, name: str = "models-reader", **changes: str) -> None:
        """The Secret that reads checkpoints."""
        store = stage.the_store(self.platform.cluster)
        values = {
            "AWS_ACCESS_KEY_ID": store.reader_access_key,
            "AWS_SECRET_ACCESS_KEY": store.reader_secret_key,
            "AWS_ENDPOINT_URL": store.endpoint_in_cluster,
            "AWS_REGION": store.region,
        }
        self.kube.apply(stage.secret_yaml(name, self.namespace, values | changes))

    def with_model(self, name: str) -> Tenant:
        """The same namespace, with another model."""
        return Tenant(self.platform, self.namespace, name)

    def apply_model(self, **changes: str) -> None:
        """The tiny model; ``changes`` replace the values of lines of MODEL by their field's name."""
        text = MODEL
        for field, value in {"name": self.name, **changes}.items():
            text, count = re.subn(rf"\b{field}: [^,}}\n]+", f"{field}: {value}", text, count=1)
            assert count == 1, f"no field {field} in the model of the tests"
        self.kube.run("kubectl", "apply", "-n", self.namespace, "-f", "-", stdin=text)

    def scale_model(self, replicas: int) -> None:
        """As a person or an autoscaler does it."""
        self.kube.run("kubectl", "scale", "completionmodel", self.name, "-n", self.namespace, f"--replicas={replicas}")

    def delete_model(self) -> None:
        """Its pods end while the next test begins."""
        self.kube.run("kubectl", "delete", "completionmodel", self.name, "-n", self.namespace)

    def model(self) -> dict[str, Any]:
        """The CompletionModel as it stands."""
        found = self.kube.get("completionmodels", self.name, self.namespace)
        assert found is not None, f"no CompletionModel {self.name}"
        return found

    def pods(self) -> list[dict[str, Any]]:
        """The model's serving pods."""
        labels = f"app.kubernetes.io/component=serving,hotstart.dev/model={self.name}"
        return self.kube.items("pods", self.namespace, labels=labels)

    def wait(self, what: Callable[[], Any], why: str, *, patience: float = PATIENCE_SECONDS) -> Any:
        """As Platform.wait, with this namespace's word on the cause."""
        return self.platform.wait(what, why, namespaces=(self.namespace,), patience=patience)

    def wait_ready(self, replicas: int = 1) -> dict[str, Any]:
        """The model once it is Ready with that many ready replicas."""

        def there() -> dict[str, Any] | None:
            model = self.model()
            ready = model.get("status", {}).get("readyReplicas", 0)
            return model if is_ready(model) and ready == replicas else None

        found: dict[str, Any] = self.wait(there, f"{self.name} is Ready with {replicas} replicas")
        return found


MODEL = """
apiVersion: hotstart.dev/v1alpha1
kind: CompletionModel
metadata: {name: tiny}
spec:
  checkpoint: {uri: "s3://models/tiny/", secretName: models-reader}
  engine:
    runtime: ctranslate2
    quantization: int8
    limits: {batchSize: 2, inputTokens: 96, sequenceTokens: 128}
  serving:
    maxNewTokens: 8
    stop: none
    queue: {maxRequests: 1000, deadline: 20s}
    resources:
      requests: {cpu: 50m, memory: 128Mi}
  slo: {latency: 10s}  # no latency of a busy machine holds replicas up
  scaling: {mode: External, scaleDownStabilization: 2s}
  replicas: 1
"""


@contextmanager
def make_tenant(platform: Platform) -> Iterator[Tenant]:
    namespace = f"test-{uuid.uuid4().hex[:8]}"
    platform.kube.apply(stage.namespace_yaml(namespace, restricted=True))
    tenant = Tenant(platform, namespace)
    tenant.put_secret()
    yield tenant
    subprocess.run(
        ("kubectl", "delete", "namespace", namespace, "--wait=false"), env=platform.kube.environment, check=True
    )


@pytest.fixture
def tenant(platform: Platform) -> Iterator[Tenant]:
    """A namespace of the test's own, with the Secret; gone after the test."""
    with make_tenant(platform) as tenant:
        yield tenant


@pytest.fixture(scope="session")
def home(platform: Platform) -> Iterator[Tenant]:
    """A namespace whose engine is built once, for the first test that asks for it."""
    with make_tenant(platform) as tenant:
        tenant.apply_model()
        yield tenant


@pytest.fixture
def serving(home: Tenant) -> Tenant:
    """A model with one replica, the same for all tests: each leaves it as it was."""
    home.wait_ready()
    home.wait(lambda: len(home.pods()) == 1, "the model has one pod")
    return home


@pytest.fixture
def settled(home: Tenant) -> Iterator[Tenant]:
    """A name for a model of the test's own, beside the engine that it needs."""
    home.wait_ready()
    tenant = home.with_model(f"tiny-{uuid.uuid4().hex[:8]}")
    yield tenant
    tenant.delete_model()
