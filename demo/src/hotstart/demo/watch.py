"""Follows the demo's CompletionModel until it is as wanted, and says what happens meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from hotstart.demo import stage
from hotstart.demo.kube import Kube, condition
from hotstart.demo.story import Changes, StepFailed
from hotstart.exchange.names import FIELD_MANAGER

POLL_SECONDS = 0.2

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


def get_model(kube: Kube) -> Model:
    """The demo's CompletionModel with the record of who wrote what.

    Raises:
        StepFailed: it is gone.
    """
    model = kube.get("completionmodels", stage.MODEL, stage.NAMESPACE)
    if model is None:
        raise StepFailed(f"CompletionModel {stage.MODEL_PATH} is gone")
    return model


def wait_for_model(kube: Kube, wanted: Callable[[Model], bool], what: str, *, limit: float, say: Changes) -> Model:
    """The model once ``wanted`` holds, which ``what`` puts in words ("is Ready").

    Raises:
        StepFailed: not within ``limit`` seconds; with the model's own word why.
    """
    deadline = time.monotonic() + limit
    while True:
        model = get_model(kube)
        if wanted(model):
            return model
        line = progress_line(model, kube.items("engines", stage.NAMESPACE))
        say(line)
        if time.monotonic() > deadline:
            raise StepFailed(f"not within {limit:.0f} s: {stage.MODEL_PATH} {what}. {line}".rstrip())
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


def decisions(model: Model) -> list[dict[str, Any]]:
    """status.decisions, newest first."""
    return list(model.get("status", {}).get("decisions") or ())


def latency(model: Model) -> str:
    """The percentile in status, such as 180ms; empty where there was no traffic."""
    return str((model.get("status", {}).get("latency") or {}).get("value") or "")


def status_written_at(model: Model) -> datetime | None:
    """When the operator last changed the status, by the API server's record (to the second)."""
    times = [
        entry["time"]
        for entry in model["metadata"].get("managedFields", ())
        if entry["manager"] == FIELD_MANAGER and entry.get("subresource") == "status"
    ]
    return datetime.fromisoformat(max(times)) if times else None
