"""The demo's cluster in memory: what kubectl answers in each act of the story."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import yaml
from hotstart.cluster.cluster import S3
from hotstart.demo import stage
from hotstart.demo.kube import Kube
from hotstart.demo.story import StepFailed
from hotstart.exchange.names import FIELD_MANAGER
from hotstart.loadtest.result import LoadResult
from hotstart.loadtest.sample import Outcome, Sample

BEGAN = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
STORE = S3("http://127.0.0.1:1", "http://10.0.0.1:1", "admin", "admins", "reader", "readers")
CLUSTER = SimpleNamespace(s3=STORE)
FIRST_START = {
    "pod": "smollm2-r-0-0",
    "measuredAt": "2026-11-29T11:59:00Z",
    "totalMilliseconds": 4300,
    "phases": {"load": 500, "other": 3800},
}
SECOND_START = {
    "pod": "smollm2-r-1-0",
    "measuredAt": "2026-11-29T12:00:10Z",
    "totalMilliseconds": 3800,
    "phases": {"load": 400, "other": 3400},
}
PROFILE = {
    "loneMilliseconds": 400,
    "inputTokens": 96,
    "newTokens": 16,
    "prefillTokensPerSecond": 900,
    "decodeTokensPerSecond": 90,
    "load": [
        {"concurrency": 1, "p95Milliseconds": 410, "tokensPerSecond": "40.0"},
        {"concurrency": 2, "p95Milliseconds": 700, "tokensPerSecond": "50.0"},
    ],
    "cpus": "0.7",
    "interThreads": 2,
    "intraThreads": 1,
    "noise": "1.00% of 10%",
    "seconds": 9,
    "repeatability": "Steady",
}


def stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def make_model(**status) -> dict:
    """The demo's own manifest as it stands once its first pod serves, with changes of its status."""
    model = yaml.safe_load(stage.MANIFEST.read_text())
    model["metadata"] |= {"namespace": stage.NAMESPACE, "generation": 1, "uid": "u"}
    model["spec"]["replicas"] = 1
    ready = {"type": "Ready", "status": "True", "reason": "Ready", "observedGeneration": 1}
    ready["lastTransitionTime"] = FIRST_START["measuredAt"]
    model["status"] = {"conditions": [ready], "readyReplicas": 1, "coldStart": FIRST_START, "builds": 1, **status}
    return model


def written(model: dict, moment: datetime) -> dict:
    """The model with a status that the operator wrote then."""
    entry = {"manager": FIELD_MANAGER, "subresource": "status", "time": stamp(moment)}
    model["metadata"]["managedFields"] = [entry]
    return model


def decision(before: int, after: int, reason: str) -> dict:
    return {"from": before, "to": after, "reason": reason, "message": "so many requests."}


POD = {"metadata": {"name": FIRST_START["pod"]}, "status": {"phase": "Succeeded"}}


class FakeKube(Kube):
    """Answers `get` for the model act by act: each act is the list of models seen in turn, the last one for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.commands: list[tuple[str, ...]] = []
        self.applied: list[str] = []
        self.objects: dict[str, list[dict]] = {"engines": [ENGINE], "pods": [POD]}
        self.broken: dict[str, Exception] = {}  # by what is asked for
        self.models = [make_model()]

    def scale_after(self, looks: int) -> None:
        """After so many looks at the model the operator has scaled to two; a status after the load tells of it."""
        self.models = [make_model() for _ in range(looks)] + [scaled_model()]

    def use(self, cluster) -> None:
        self._env = {"used": "1"}

    def run(self, *command: str, stdin: str | None = None) -> str:
        self.commands.append(command)
        return ""

    def apply(self, manifest: str) -> str:
        self.applied.append(manifest)
        return ""

    def get(self, kind: str, name: str = "", namespace: str = ""):
        if problem := self.broken.get(kind):
            raise problem
        if kind == "completionmodels":
            return self.models.pop(0) if len(self.models) > 1 else self.models[0]
        return next(iter(self.objects.get(kind, ())), None)

    def items(self, kind: str, namespace: str = "", *, labels: str = "", fields: str = ""):
        if problem := self.broken.get(kind):
            raise problem
        return self.objects.get(kind, [])

    def logs(self, namespace: str, pod: str, *options: str) -> list[str]:
        return [f"{pod} {' '.join(options)}"]


ENGINE = {
    "kind": "Engine",
    "metadata": {"name": "e" * 40},
    "status": {
        "buildSeconds": 25,
        "profile": PROFILE,
        "verification": {"agreement": "90.5 %", "agreed": 100, "compared": 100, "positions": 200},
    },
}


def make_result(plan, *, drift: float = 0.001, failed: int = 0, second_at: float = 10.0) -> LoadResult:
    """Answers in 2 s while one replica serves and in 0.5 s once two do; the last ``failed`` fail."""
    samples = [
        Sample(arrival.offset, drift, 2.0 if arrival.offset < second_at else 0.5, Outcome.OK)
        for arrival in plan.arrivals
    ]
    for index in range(len(samples) - failed, len(samples)):
        samples[index] = samples[index]._replace(outcome=Outcome.FAILED, reason="http_503", detail="no replica")
    return LoadResult(plan, tuple(samples), BEGAN, 60.0)


def play_load(**changes):
    """In place of `run_in_processes`: the load is over at once."""

    async def run_in_processes(plan, processes):
        return make_result(plan, **changes)

    return run_in_processes


def make_clock():
    """In place of `utc_now`: the first look is at the start of the load, all others 10 s later."""
    moments = itertools.chain([BEGAN], itertools.repeat(BEGAN + timedelta(seconds=10)))
    return lambda: next(moments)


def scaled_model(**status) -> dict:
    up = [decision(1, 2, "DemandRose")]
    latency = {"value": "1390ms"}
    model = make_model(**{"readyReplicas": 2, "coldStart": SECOND_START, "decisions": up, "latency": latency, **status})
    model["spec"]["replicas"] = 1  # and back again, by the time that the demo waits for it
    return written(model, BEGAN + timedelta(seconds=65))


GONE = StepFailed('the server doesn\'t have a resource type "completionmodels"')
