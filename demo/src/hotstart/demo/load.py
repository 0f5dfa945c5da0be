"""The demo's load: 60 s that one replica cannot hold and two can, what the operator does about it, and the way back."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import openai
from hotstart.demo import stage
from hotstart.demo.kube import Kube, condition
from hotstart.demo.story import Changes, StepFailed, Story
from hotstart.demo.watch import cold_start, ready_replicas, wait_for_model
from hotstart.loadtest.prompts import BUILT_IN_PROMPTS

MODEL = "smollm2"
REPLICAS_OF_LOAD = 1.15  # the rate, in what a replica can do
MAX_TOKENS = 16
PROBE_PAUSE_SECONDS = 1.5
PROBES = 4  # lone requests that tell what one of the load's takes
DURATION = "60s"
SLO = "3s"
HEADLINES = (
    "engine_build_seconds",
    "agreement",
    "calibrate_seconds",
    "lone_request_ms",
    "calibrated_concurrency",
    "first_pod_seconds",
    "second_pod_seconds",
    "p95_ms",
    "p95_status_ms",
    "requests",
    "failed",
    "scaled_to",
    "builds",
)


def milliseconds(duration: str | None) -> float | None:
    """A duration of the API, such as 180ms or 1.2s, in ms; None where there is none."""
    found = re.fullmatch(r"([\d.]+)(ms|s)", duration or "")
    return float(found[1]) * (1 if found[2] == "ms" else 1000) if found else None


def decide_rate(lone_seconds: float, work: float) -> float:
    """Requests/s that are the work of more than one replica and less than two.

    ``lone_seconds``: what a request of the load takes alone; ``work``: how many of them a replica does at once.
    """
    return round(REPLICAS_OF_LOAD * work / lone_seconds, 2)


def probe(url: str, model: str) -> float:
    """Seconds that a request of the load takes alone, the mean: most are shorter than those of the calibration.

    Most of the time nothing is asked: one request after the other would be all that a replica can do, and scale it up.
    """
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
    took = []
    for prompt in BUILT_IN_PROMPTS[:PROBES]:
        began = time.monotonic()
        client.completions.create(model=model, prompt=prompt, max_tokens=MAX_TOKENS, temperature=0)
        took.append(time.monotonic() - began)
        time.sleep(PROBE_PAUSE_SECONDS)
    return sum(took) / len(took)


def run(
    kube: Kube, url: str, model: str, rate: float, story: Story
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The load with the operator at work: the client's figures, the second pod's start, the model at the end.

    Raises:
        StepFailed: requests failed, the run is void, or no second replica became ready.
    """
    story.say(f"hotstart-loadtest run --rate {rate} --duration {DURATION}: open loop, latency from the intended time")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = (
            *(str(Path(sys.executable).parent / "hotstart-loadtest"), "run", "--url", url, "--model", model),
            *(
                "--rate",
                str(rate),
                "--duration",
                DURATION,
                "--max-tokens",
                str(MAX_TOKENS),
                "--slo",
                SLO,
                "--quiet",
                "--output",
                str(report),
            ),
        )
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            scaled_to, second, last = follow(kube, process, Changes(story))
        finally:
            process.terminate()
            printed = process.communicate()[0]
        if not report.exists():
            raise StepFailed(f"the load test ended with {process.returncode}:\n{printed}")
        result = json.loads(report.read_text())
    if result["failed"]:
        raise StepFailed(f"{result['failed']} of {result['requests']} requests failed:\n{printed}")
    if scaled_to < 2:
        raise StepFailed(f"the operator did not scale up: {json.dumps(decisions(last), indent=1)}")
    result["scaled_to"] = scaled_to
    return result, second, last


def follow(kube: Kube, process: subprocess.Popen[str], say: Changes) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """While the load runs: the most ready replicas, the start of the newest pod, the model as last seen."""
    most, second, model = 0, {}, {}
    first_pod = ""
    while process.poll() is None:
        model = kube.get("completionmodel", MODEL, "-n", stage.NAMESPACE) or {}
        ready = ready_replicas(model)
        most = max(most, ready)
        first_pod = first_pod or cold_start(model).get("pod", "")
        if cold_start(model).get("pod") != first_pod:
            second = cold_start(model)
        newest = (decisions(model) or [{}])[0]
        latency = (model["status"].get("latency") or {}).get("value", "-")
        why = f"{newest.get('reason', '')}: {newest.get('message', '')}" if newest else ""
        say(f"replicas {ready} ready of {model['spec'].get('replicas')}, P95 {latency}; {why}")
        time.sleep(0.5)
    return most, second, model


def decisions(model: dict[str, Any]) -> list[dict[str, Any]]:
    """status.decisions, newest first."""
    return list(model.get("status", {}).get("decisions") or ())


def compare(result: dict[str, Any], model: dict[str, Any], story: Story) -> dict[str, Any]:
    """The client's P95 beside the one in status; the figures for build/demo.json."""
    in_status = milliseconds((model["status"].get("latency") or {}).get("value"))
    met = condition(model, "SLOMet")
    story.say(
        f"{result['requests']} requests, {result['failed']} failed; by the client P50 {result['p50_ms']:.0f} ms, "
        f"P95 {result['p95_ms']:.0f} ms (of all 60 s); P95 in status {in_status} ms (last window); "
        f"SLOMet={met.get('status')} ({met.get('reason')}); send drift p99 {result['drift_p99_ms']:.2f} ms"
    )
    if result["void"]:
        story.say(result["void_reason"])
    keep = ("void", "requests", "failed", "scaled_to", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "drift_p99_ms")
    return {**{name: result[name] for name in keep}, "p95_status_ms": in_status}


def wait_for_scale_down(kube: Kube, story: Story) -> None:
    """Until one replica is left, drained."""

    def one_left(model: dict[str, Any]) -> bool:
        pods = kube.items("pods", "-n", stage.NAMESPACE, "-l", "app.kubernetes.io/component=serving")
        return model["spec"].get("replicas") == 1 and len(pods) == 1

    model = wait_for_model(kube, stage.NAMESPACE, MODEL, one_left, limit=120, say=Changes(story))
    newest = decisions(model)[0]
    story.say(f"{newest['from']} -> {newest['to']}: {newest['reason']}: {newest['message']}")
