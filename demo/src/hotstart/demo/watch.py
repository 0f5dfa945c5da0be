"""Follows a CompletionModel until it is as wanted, and says what happens meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from hotstart.demo.kube import Kube, condition
from hotstart.demo.story import Changes, StepFailed

POLL_SECONDS = 0.2
TERMINAL_AFTER_SECONDS = 20.0

Model = dict[str, Any]


def progress_line(model: Model, engines: list[dict[str, Any]]) -> str:
    """What a person wants to know now: the build with its progress, else the first condition that is not True."""
    engine_ready = condition(model, "EngineReady")
    if engine_ready.get("status") != "True":
        for engine in engines:
            status = engine.get("status", {})
            if status.get("phase") and condition(engine, "Ready").get("status") != "True":
                eta = f", about {status['etaSeconds']} s left" if status.get("etaSeconds") else ""
                return f"engine {engine['metadata']['name'][:12]}: {status['phase']} {status.get('percent', 0)} %{eta}"
    for kind in ("EngineReady", "WorkloadReady", "EndpointReady"):
        found = condition(model, kind)
        if found and found["status"] != "True":
            return f"{kind}: {found['reason']}: {found.get('message', '')}"
    return ""


def wait_for_model(
    kube: Kube, namespace: str, name: str, wanted: Callable[[Model], bool], *, limit: float, say: Changes
) -> Model:
    """The model once ``wanted`` holds.

    Raises:
        StepFailed: not within ``limit`` seconds; with the model's own word why.
    """
    deadline = time.monotonic() + limit
    while True:
        model = kube.get("completionmodel", name, "-n", namespace)
        if model is None:
            raise StepFailed(f"CompletionModel {namespace}/{name} is gone")
        if wanted(model):
            return model
        say(progress_line(model, kube.items("engines", "-n", namespace)))
        if time.monotonic() > deadline:
            raise StepFailed(f"{namespace}/{name} is not there after {limit:.0f} s")
        time.sleep(POLL_SECONDS)


def is_ready(model: Model) -> bool:
    """Ready=True for the generation that stands."""
    found = condition(model, "Ready")
    current = found.get("observedGeneration") == model["metadata"]["generation"]
    return found.get("status") == "True" and current


def is_measured(model: Model) -> bool:
    """Ready, and its pod's start is told in status."""
    return is_ready(model) and bool(cold_start(model))


def ready_replicas(model: Model) -> int:
    """status.readyReplicas, 0 where it is not written."""
    return int(model.get("status", {}).get("readyReplicas", 0))


def cold_start(model: Model) -> dict[str, Any]:
    """status.coldStart; empty where nothing was measured."""
    return dict(model.get("status", {}).get("coldStart") or {})
