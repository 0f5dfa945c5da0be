"""`make demo`: one CompletionModel from a trained checkpoint to measured completions, on a real cluster.

Ends with exit code 0 and build/demo.json, or with the cause of what failed and exit code 1.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
from hotstart.cluster import forward
from hotstart.cluster.cluster import Cluster
from hotstart.cluster.errors import ClusterError
from hotstart.demo import load, stage
from hotstart.demo.kube import Kube, condition
from hotstart.demo.story import Changes, StepFailed, Story
from hotstart.demo.watch import cold_start, is_measured, wait_for_model
from hotstart.loadtest.machine import describe_machine
from hotstart.operator.api import CompletionModel
from hotstart.operator.api.engine import ProfileStatus
from hotstart.operator.core.capacity import decide_capacity

MODEL = load.MODEL
PROMPT = '''def fibonacci(n: int) -> int:
    """Return the n-th Fibonacci number."""
    if n < 2:
        return n
    '''


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
    manifest = (stage.ROOT / "examples" / "demo.yaml").read_text()
    story.say(kube.run("kubectl", "apply", "-n", stage.NAMESPACE, "-f", "-", stdin=manifest).strip())


def forget_model(kube: Kube) -> None:
    """Takes away what an earlier demo left, so that this one builds and starts from nothing.

    The pods go first: a namespace looks for what is left in it only after half of their grace period.
    """
    if kube.get("namespace", stage.NAMESPACE):
        kube.run("kubectl", "delete", "completionmodels", "--all", "-n", stage.NAMESPACE, "--timeout=60s")
        kube.run("kubectl", "delete", "pods", "--all", "-n", stage.NAMESPACE, "--grace-period=1", "--timeout=60s")
        kube.run("kubectl", "delete", "namespace", stage.NAMESPACE, "--wait=true", "--timeout=90s")


def complete(url: str, story: Story) -> None:
    """Three lines of Python: one completion, shown."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
    answer = client.completions.create(model=f"{stage.NAMESPACE}/{MODEL}", prompt=PROMPT, max_tokens=16, temperature=0)
    text = answer.choices[0].text
    if not text.strip():
        raise StepFailed(f"the model answered nothing: {answer.to_json()}")
    story.say(PROMPT + f"\033[1m{text}\033[0m" if sys.stdout.isatty() else PROMPT + "\N{RIGHTWARDS ARROW} " + text)


def measured(engine: dict[str, Any], model: dict[str, Any], story: Story) -> dict[str, Any]:
    """How far the engine agrees with its checkpoint and how fast it is; said, and flat for build/demo.json."""
    verified, profile = engine["status"].get("verification", {}), engine["status"].get("profile")
    story.say(
        f"verified: {verified.get('agreed')} of {verified.get('compared')} clear positions agree, "
        f"{verified.get('agreement')} of all {verified.get('positions')}; reference {verified.get('reference')}"
    )
    attainable = condition(model, "SLOAttainable")
    said = f"SLOAttainable={attainable.get('status')} ({attainable.get('reason')}): {attainable.get('message')}"
    if profile is None:
        raise StepFailed(f"the engine was not calibrated: {condition(engine, 'Ready').get('message')}")
    status = ProfileStatus.model_validate(profile)
    capacity = decide_capacity(CompletionModel.from_api(model).spec, status)
    points = ", ".join(f"{point.concurrency}: {point.p95_milliseconds} ms" for point in status.load)
    story.say(
        f"calibrated in {status.seconds} s on {status.cpus} CPUs: a lone request of {status.input_tokens} + "
        f"{status.new_tokens} tokens {status.lone_milliseconds} ms; prefill {status.prefill_tokens_per_second} and "
        f"decode {status.decode_tokens_per_second} tokens/s; P95 by requests at once: {points}; "
        f"{status.repeatability}, noise {status.noise}"
    )
    story.say(said)
    return {
        "agreement": verified.get("agreement"),
        "calibrate_seconds": status.seconds,
        "calibration_noise": status.noise,
        "lone_request_ms": status.lone_milliseconds,
        "calibrated_concurrency": capacity.concurrency,
        "calibrated_work": capacity.work,
        "capacity_origin": str(capacity.origin),
    }


def phases(prefix: str, start: dict[str, Any]) -> dict[str, float]:
    """The phases of a pod's start in seconds, flat."""
    found = {f"phase_{prefix}_{name}_seconds": ms / 1000 for name, ms in start.get("phases", {}).items()}
    return {**found, f"{prefix}_pod_seconds": start.get("totalMilliseconds", 0) / 1000}


def describe_start(start: dict[str, Any]) -> str:
    """One line: total and phases."""
    parts = ", ".join(f"{name} {ms / 1000:.2f}" for name, ms in start.get("phases", {}).items())
    return f"{start.get('pod')}: {start.get('totalMilliseconds', 0) / 1000:.2f} s from decision to serving ({parts} s)"


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def tell(story: Story, kube: Kube) -> dict[str, Any]:
    """All steps; the figures for build/demo.json."""
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
    with story.step("engine_and_first_pod", "kubectl apply -f examples/demo.yaml: engine built, first pod ready"):
        apply_model(kube, cluster, story)
        say = Changes(story)
        model = wait_for_model(kube, stage.NAMESPACE, MODEL, is_measured, limit=240, say=say)
        first = cold_start(model)
        story.say(describe_start(first))
    engine = kube.items("engines", "-n", stage.NAMESPACE)[0]
    facts["engine_build_seconds"] = engine["status"].get("buildSeconds")
    found = measured(engine, model, story)
    facts |= found
    facts |= phases("first", first)
    host, port = forward.resolve(cluster, f"{stage.SYSTEM}/hotstart-router:8080")
    url = f"http://127.0.0.1:{forward.reuse(cluster, host, port, 0)}"
    with story.step("completion", f"A completion through Hotstart's endpoint {url}/v1"):
        complete(url, story)
        lone = load.probe(url, f"{stage.NAMESPACE}/{MODEL}")
        rate = load.decide_rate(lone, found["calibrated_work"])
        story.say(
            f"a request of the load takes {lone * 1000:.0f} ms alone: {rate} requests/s are more than one replica's"
        )
    with story.step("load", "60 s of load: from 1 replica to 2"):
        result, second, model = load.run(kube, url, f"{stage.NAMESPACE}/{MODEL}", rate, story)
        story.say(describe_start(second))
    facts |= phases("second", second)
    facts |= load.compare(result, model, story)
    with story.step("scale_down", "The load is gone: back to 1 replica"):
        load.wait_for_scale_down(kube, story)
    facts["builds"] = int(model["status"].get("builds", 0))
    facts |= {f"phase_{name}_seconds": seconds for name, seconds in story.seconds.items()}
    facts["total_seconds"] = round(story.elapsed(), 1)
    facts["url"] = url
    return facts


def farewell(facts: dict[str, Any]) -> str:
    """How to look around, and how to end it."""
    return f"""
The cluster is up. To look around:
    . build/cluster/env
    kubectl get completionmodels,engines,pods -n {stage.NAMESPACE}
    kubectl describe completionmodel {MODEL} -n {stage.NAMESPACE}
    curl {facts["url"]}/v1/completions -H 'Content-Type: application/json' \\
        -d '{{"model": "{stage.NAMESPACE}/{MODEL}", "prompt": "def add(a, b):\\n    return", "max_tokens": 8}}'
To end it: make down"""


def main() -> int:
    """The exit code."""
    story, kube = Story(), Kube()
    output = stage.ROOT / "build" / "demo.json"
    output.unlink(missing_ok=True)
    try:
        facts = tell(story, kube)
    except (StepFailed, ClusterError, openai.OpenAIError, subprocess.SubprocessError, OSError) as failure:
        print(f"\nThe demo failed after {story.elapsed():.1f} s: {failure}", file=sys.stderr)
        if kube.ready:
            print(kube.diagnosis(stage.NAMESPACE, stage.SYSTEM), file=sys.stderr)
        return 1
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps(facts, indent=2) + "\n")
    print(f"\nDone in {story.elapsed():.0f} s. Figures: {output.relative_to(Path.cwd())}")
    for name in load.HEADLINES:
        print(f"    {name:24} {facts[name]}")
    print(farewell(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
