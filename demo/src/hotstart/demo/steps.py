"""The demo's steps in their order, each said and measured."""

from __future__ import annotations

import datetime
import sys
from typing import Any

import openai
from hotstart.cluster.cluster import Cluster
from hotstart.demo import figures, load, stage
from hotstart.demo.kube import Kube
from hotstart.demo.story import Changes, StepFailed, Story
from hotstart.demo.watch import cold_start, is_measured, wait_for_model
from hotstart.loadtest.machine import describe_machine

PROMPT = '''def fibonacci(n: int) -> int:
    """Return the n-th Fibonacci number."""
    if n < 2:
        return n
    '''


def tell(story: Story, kube: Kube) -> dict[str, Any]:
    """All steps; the figures for build/demo.json.

    Raises:
        StepFailed, ClusterError, and whatever else a step meets.
    """
    facts: dict[str, Any] = {"date": now(), **describe_machine()}
    with story.step("cluster", "A Kubernetes cluster, an S3 store, the images in the node"):
        cluster = stage.start_cluster(story)
    kube.use(cluster)
    with story.step("checkpoint", "A trained checkpoint in the object store: SmolLM2-135M-Instruct"):
        forget_model(kube)
        stage.empty_engine_bucket(cluster)
        stage.upload_checkpoint(cluster, story)
    with story.step("install", "helm install hotstart"):
        stage.install_chart(kube, cluster, story)
    first, found = serve(story, kube, cluster)
    facts |= found
    url = facts["url"] = stage.forward_router(cluster)
    with story.step("completion", f"A completion through Hotstart's endpoint {url}/v1"):
        complete(url, story)
        lone = load.probe(url, facts["lone_request_ms"] / 1000)
        rate = load.decide_rate(lone, facts["calibrated_work"])
        story.say(f"A request of the load takes {lone * 1000:.0f} ms alone: {rate} a second are too many for one pod.")
    with story.step("load", f"{load.LOAD_SECONDS:.0f} s of load: from 1 replica to 2"):
        run = load.run(kube, load.make_plan(kube, url, rate), first, story)
        found = figures.describe_load(run)
        story.say(figures.describe_start(run.second))
        story.say(figures.tell_load(found))
    facts |= figures.phases("second", run.second) | found
    with story.step("scale_down", "The load is gone: back to 1 replica"):
        model = load.wait_for_scale_down(kube, story)
    facts["builds"] = int(model["status"].get("builds", 0))
    facts |= {f"phase_{name}_seconds": seconds for name, seconds in story.seconds.items()}
    facts["total_seconds"] = round(story.elapsed(), 1)
    return facts


def serve(story: Story, kube: Kube, cluster: Cluster) -> tuple[str, dict[str, Any]]:
    """From the applied model to its first pod: the pod's name; the figures of build, calibration and start."""
    with story.step("engine_and_first_pod", "kubectl apply -f examples/demo.yaml: engine built, first pod ready"):
        apply_model(kube, cluster, story)
        model = wait_for_model(kube, is_measured, "is Ready", limit=240, say=Changes(story))
        first = cold_start(model)
        story.say(figures.describe_start(first))
        engine = kube.items("engines", stage.NAMESPACE)[0]
        story.say(figures.tell_engine(engine, model))
    return first["pod"], figures.describe_engine(engine, model) | figures.phases("first", first)


def apply_model(kube: Kube, cluster: Cluster, story: Story) -> None:
    """The namespace, the Secret that reads the checkpoint, and examples/demo.yaml, all as a user would."""
    store = stage.the_store(cluster)
    reader = {
        "AWS_ACCESS_KEY_ID": store.reader_access_key,
        "AWS_SECRET_ACCESS_KEY": store.reader_secret_key,
        "AWS_ENDPOINT_URL": store.endpoint_in_cluster,
        "AWS_REGION": store.region,
    }
    secret = stage.secret_yaml("models-reader", stage.NAMESPACE, reader)
    kube.apply(stage.namespace_yaml(stage.NAMESPACE, restricted=True) + secret)
    story.say(kube.run("kubectl", "apply", "-n", stage.NAMESPACE, "-f", str(stage.MANIFEST)).strip())


def forget_model(kube: Kube) -> None:
    """Takes away what an earlier demo left, so that this one builds and starts from nothing.

    The pods go first: a namespace looks for what is left in it only after half of their grace period.
    """
    if kube.get("namespaces", stage.NAMESPACE) is not None:
        kube.run("kubectl", "delete", "completionmodels", "--all", "-n", stage.NAMESPACE, "--timeout=60s")
        kube.run("kubectl", "delete", "pods", "--all", "-n", stage.NAMESPACE, "--grace-period=1", "--timeout=60s")
        kube.run("kubectl", "delete", "namespace", stage.NAMESPACE, "--wait=true", "--timeout=90s")


def complete(url: str, story: Story) -> None:
    """One completion of Python code, shown."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
    answer = client.completions.create(model=stage.MODEL_PATH, prompt=PROMPT, max_tokens=16, temperature=0)
    text = answer.choices[0].text
    if not text.strip():
        raise StepFailed(f"the model answered nothing: {answer.to_json()}")
    story.say(PROMPT + f"\033[1m{text}\033[0m" if sys.stdout.isatty() else PROMPT + "\N{RIGHTWARDS ARROW} " + text)


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
