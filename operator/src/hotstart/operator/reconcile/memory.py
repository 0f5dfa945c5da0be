"""What the operator remembers and could lose without harm: reports, statistics, crash counts, decisions.

Another process that leads has it anew from the cluster, from the agents' buffers, or from status. Crashes are recalled
where they have stopped a revision; fewer are forgotten, and that revision may crash so often once more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from hotstart.exchange.messages import BuildReport, PodReport, PodState
from hotstart.operator.api.status import Decision
from hotstart.operator.core.crashes import CrashRecord
from hotstart.operator.core.gpu_fleet import GpuPod
from hotstart.operator.core.jobs import Failure
from hotstart.operator.core.scale import ScaleDecision, ScaleState
from hotstart.operator.core.verdicts import RouterFacts
from hotstart.operator.core.window import Window


@dataclass(frozen=True)
class Heard:
    """A pod's last report and when it came; since when it fails, and how many bytes it had fetched then."""

    report: PodReport
    at: float
    failed_since: float | None = None
    failed_bytes: int = 0


def hear(last: Heard | None, report: PodReport, now: float) -> Heard:
    """What is known after one more report. An agent that tries again fails on, until it has got further."""
    if report.state is PodState.READY:
        return Heard(report, now)
    fails = report.state is PodState.FAILED
    if last is None or last.failed_since is None or (fails and report.bytes_done > last.failed_bytes):
        return Heard(report, now, now if fails else None, report.bytes_done)
    return Heard(report, now, last.failed_since, last.failed_bytes)


@dataclass(frozen=True)
class HeardBuild:
    """A builder's last report and when it came."""

    report: BuildReport
    at: float


@dataclass
class ModelMemory:
    """Of one model."""

    uid: str = ""
    crashes: Mapping[str, CrashRecord] = field(default_factory=dict)
    window: Window = field(default_factory=Window)
    scale: ScaleState = field(default_factory=ScaleState)
    decision: ScaleDecision | None = None
    decisions: tuple[Decision, ...] | None = None  # None: not yet read from status
    written_at: float = 0.0  # when its status was last written
    woken_at: float = 0.0  # when it was last reconciled for its traffic's sake


@dataclass
class Memory:
    """Of all. ``reports`` and ``builds`` are by UID and by (namespace, Engine)."""

    models: dict[tuple[str, str], ModelMemory] = field(default_factory=dict)
    reports: dict[str, Heard] = field(default_factory=dict)
    builds: dict[tuple[str, str], HeardBuild] = field(default_factory=dict)
    upload_failures: dict[tuple[str, str], Failure] = field(default_factory=dict)  # by (namespace, Engine)
    published: set[tuple[str, str]] = field(default_factory=set)
    out_of_routes: set[str] = field(default_factory=set)  # UIDs of pods that no router sends to
    routers: dict[tuple[str, str], RouterFacts] = field(default_factory=dict)  # by model
    router_total: int = 0
    namespaces: dict[str, str] = field(default_factory=dict)  # UIDs by name
    gpu_pods: dict[str, GpuPod] = field(default_factory=dict)  # by UID, as last listed
    gpus_listed_at: float = -math.inf
    gpus_whole: bool = True  # whether pods of all namespaces were listed

    def of(self, namespace: str, name: str, uid: str) -> ModelMemory:
        """A model's memory; a new one where another object has taken its name."""
        found = self.models.get((namespace, name))
        if found is None or found.uid != uid:
            found = self.models[(namespace, name)] = ModelMemory(uid=uid)
        return found

    def forget_build(self, namespace: str, engine: str) -> None:
        """The engine stands in the store, or is gone: nothing of its build matters any longer."""
        self.builds.pop((namespace, engine), None)
        self.upload_failures.pop((namespace, engine), None)
        self.published.discard((namespace, engine))

    def router_facts(self, namespace: str, name: str) -> RouterFacts:
        """What is known of the routers with respect to a model."""
        return self.routers.get((namespace, name), RouterFacts(total=self.router_total))
