"""The demo's load: a minute that one replica cannot hold and two can, what the operator does about it, the way back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import openai
from hotstart.demo import stage
from hotstart.demo.kube import Kube
from hotstart.demo.story import Changes, StepFailed, Story
from hotstart.demo.watch import (
    Model,
    cold_start,
    decisions,
    get_model,
    latency,
    ready_replicas,
    status_written_at,
    wait_for_model,
)
from hotstart.loadtest.durations import parse_duration
from hotstart.loadtest.fleet import run_in_processes
from hotstart.loadtest.plan import LoadPlan, make_constant_plan
from hotstart.loadtest.prompts import BUILT_IN_PROMPTS
from hotstart.loadtest.result import LoadResult

REPLICAS_OF_LOAD = 1.15  # the rate, in what a replica can do
MAX_TOKENS = 16
PROBES = 4  # lone requests that tell what one of the load's takes
PROBE_PAUSE = 6  # lone requests long: the operator looks at the busiest 2 s of 6, and is to see no demand
LOAD_SECONDS = 60.0
LOOK_SECONDS = 0.5
ROUTERS_TELL_SECONDS = 2.0  # after a request's end the operator knows of it: routers report whole seconds


@dataclass(frozen=True)
class LoadRun:
    """What came of the load.

    ``looks``: seconds from the start of the load, and how many replicas were ready then; ``second``: status.coldStart
    of the second pod; ``model``: as it stood once its status covered all of the load.
    """

    result: LoadResult
    looks: tuple[tuple[float, int], ...]
    second: dict[str, Any]
    model: Model

    @property
    def told_at(self) -> datetime:
        """When that status was written: its latency is of the minute before."""
        found = status_written_at(self.model)
        assert found is not None
        return found


def decide_rate(lone_seconds: float, work: float) -> float:
    """Requests/s that are the work of more than one replica and less than two.

    ``lone_seconds``: what a request of the load takes alone; ``work``: how many of them a replica does at once.
    """
    return round(REPLICAS_OF_LOAD * work / lone_seconds, 2)


def probe(url: str, calibrated_seconds: float) -> float:
    """Seconds that a request of the load takes alone, the mean: most are shorter than the one of the calibration.

    Most of the time nothing is asked: one request after the other would be all that a replica can do, and scale it up.
    """
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
    took = []
    for prompt in BUILT_IN_PROMPTS[:PROBES]:
        time.sleep(PROBE_PAUSE * calibrated_seconds)
        began = time.monotonic()
        client.completions.create(model=stage.MODEL_PATH, prompt=prompt, max_tokens=MAX_TOKENS, temperature=0)
        took.append(time.monotonic() - began)
    return sum(took) / len(took)


def make_plan(kube: Kube, url: str, rate: float) -> LoadPlan:
    """The load, with the model's own SLO."""
    slo = parse_duration(get_model(kube)["spec"]["slo"]["latency"])
    return make_constant_plan(url, stage.MODEL_PATH, rate=rate, duration=LOAD_SECONDS, max_tokens=MAX_TOKENS, slo_s=slo)


def run(kube: Kube, plan: LoadPlan, first_pod: str, story: Story) -> LoadRun:
    """The load with the operator at work, until status tells of all of it.

    Raises:
        StepFailed: the run is void, requests failed, no second replica became ready, or status does not tell of it.
    """
    story.say(f"{len(plan.arrivals)} requests in {LOAD_SECONDS:.0f} s, whatever becomes of those before (open loop)")
    say = Changes(story)
    follower = Follower(kube, say)
    result = asyncio.run(send_and_follow(plan, follower.look))
    summary = result.summary
    if result.void:
        raise StepFailed(f"{summary.void_reason} Too much else runs on this machine: end it, and try again.")
    if summary.ok < len(plan.arrivals):
        why = f"{summary.failures} {summary.failure_details}" if summary.failures else "unfinished"
        raise StepFailed(f"{len(plan.arrivals) - summary.ok} of {len(plan.arrivals)} requests got no answer: {why}")
    ended = result.started_at + timedelta(seconds=max(sample.intended + sample.latency for sample in result.samples))
    covered = ended + timedelta(seconds=ROUTERS_TELL_SECONDS)
    if max(ready for _, ready in follower.looks) < 2:
        raise StepFailed(f"the operator did not scale up; its last decision: {describe_decision(get_model(kube))}")

    def is_second_told(model: Model) -> bool:
        return cold_start(model).get("pod", "") not in ("", first_pod)

    def covers_load(model: Model) -> bool:
        written = status_written_at(model)
        return written is not None and written >= covered and bool(latency(model))

    wait_for_model(kube, is_second_told, "tells how its second pod started", limit=30, say=say)
    model = wait_for_model(kube, covers_load, "has a status that covers the load's end", limit=60, say=say)
    looks = tuple(((at - result.started_at).total_seconds(), ready) for at, ready in follower.looks)
    return LoadRun(result, looks, cold_start(model), model)


async def send_and_follow(plan: LoadPlan, look: Callable[[], None]) -> LoadResult:
    """The load's result. ``look`` is called twice a second and once more at the end; what it raises ends the load."""
    sending = asyncio.create_task(run_in_processes(plan, 1))
    try:
        while not sending.done():
            await asyncio.to_thread(look)
            await asyncio.wait({sending}, timeout=LOOK_SECONDS)
        await asyncio.to_thread(look)
        return await sending
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


class Follower:
    """Sees what the operator does under load, and says it as it changes; keeps when how many replicas were ready."""

    def __init__(self, kube: Kube, say: Changes) -> None:
        self._kube, self._say = kube, say
        self.looks: list[tuple[datetime, int]] = []

    def look(self) -> None:
        """One look."""
        model = get_model(self._kube)
        ready = ready_replicas(model)
        self.looks.append((utc_now(), ready))
        replicas = f"{ready} of {model['spec'].get('replicas')} replicas ready"
        self._say(f"{replicas}, P95 in status {latency(model) or '-'}; {describe_decision(model)}")


def utc_now() -> datetime:
    """The machine's clock, which the load's start is told by too."""
    return datetime.now(UTC)


def describe_decision(model: Model) -> str:
    """The newest decision in a line."""
    found = decisions(model)
    if not found:
        return "nothing decided yet"
    return f"{found[0]['from']} -> {found[0]['to']}: {found[0]['reason']}: {found[0]['message']}"


def wait_for_scale_down(kube: Kube, story: Story) -> Model:
    """The model once one replica is left, drained."""

    def one_left(model: Model) -> bool:
        pods = kube.items("pods", stage.NAMESPACE, labels="app.kubernetes.io/component=serving")
        return model["spec"].get("replicas") == 1 and len(pods) == 1

    model = wait_for_model(kube, one_left, "is back at one replica", limit=120, say=Changes(story))
    story.say(describe_decision(model))
    return model
