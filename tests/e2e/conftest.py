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
    """One namespace with the `restricted` standard, and the models in it."""

    def __init__(self, platform: Platform, namespace: str) -> None:
        self.platform, self.kube, self.namespace = platform, platform.kube, namespace

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

    def apply_model(self, name: str = "tiny", **changes: str) -> None:
        """The tiny model; ``changes`` replace the values of lines of MODEL by their field's name."""
        text = MODEL
        for field, value in {"name": name, **changes}.items():
            text, count = re.subn(rf"\b{field}: [^,}}\n]+", f"{field}: {value}", text, count=1)
            assert count == 1, f"no field {field} in the model of the tests"
        self.kube.run("kubectl", "apply", "-n", self.namespace, "-f", "-", stdin=text)

    def model(self, name: str = "tiny") -> dict[str, Any]:
        """The CompletionModel as it stands."""
        found = self.kube.get("completionmodels", name, self.namespace)
        assert found is not None, f"no CompletionModel {name}"
        return found

    def pods(self, component: str = "serving") -> list[dict[str, Any]]:
        """The namespace's pods of a component."""
        return self.kube.items("pods", self.namespace, labels=f"app.kubernetes.io/component={component}")

    def wait(self, what: Callable[[], Any], why: str, *, patience: float = PATIENCE_SECONDS) -> Any:
        """As Platform.wait, with this namespace's word on the cause."""
        return self.platform.wait(what, why, namespaces=(self.namespace,), patience=patience)

    def wait_ready(self, name: str = "tiny", replicas: int = 1) -> dict[str, Any]:
        """The model once it is Ready with that many ready replicas."""

        def there() -> dict[str, Any] | None:
            model = self.model(name)
            ready = model.get("status", {}).get("readyReplicas", 0)
            return model if is_ready(model) and ready == replicas else None

        found: dict[str, Any] = self.wait(there, f"{name} is Ready with {replicas} replicas")
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
    """The namespace of ``settled``."""
    with make_tenant(platform) as tenant:
        yield tenant


@pytest.fixture
def settled(home: Tenant) -> Iterator[Tenant]:
    """A tenant whose engine stands since the first test that asked for one; its models go with the test."""
    yield home
    home.kube.run("kubectl", "delete", "completionmodels", "--all", "-n", home.namespace)
    home.wait(lambda: not home.pods(), "the model's pods are gone")
