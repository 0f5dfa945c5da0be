"""What is known of one Engine when it is decided about, and what the decision is. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hotstart.engines.manifest import Manifest
from hotstart.exchange.messages import BuildReport
from hotstart.operator.api import Engine, EngineStatus
from hotstart.operator.core.facts import JobFacts
from hotstart.operator.core.gpu_fleet import GpuFleet
from hotstart.operator.core.jobs import Failure
from hotstart.operator.core.quarantine import Quarantine
from hotstart.operator.core.revision import Bundle


@dataclass(frozen=True)
class StoredEngine:
    """An engine that stands whole in the store. ``text`` is its manifest as it is stored."""

    manifest: Manifest
    text: str
    location: str
    bundles: tuple[Bundle, ...] = ()


@dataclass(frozen=True)
class EngineView:
    """All that is known of one engine. ``wanted``: a model wants it now; ``secret`` is that model's.

    ``fleet`` is None where nobody looked for GPUs: the engine is of a CPU, or stands in the store.
    """

    engine: Engine
    jobs: tuple[JobFacts, ...]
    stored: StoredEngine | None
    store_failure: Failure | None
    report: BuildReport | None
    wanted: bool
    secret: str
    fleet: GpuFleet | None = None
    upload_failure: Failure | None = None  # what the store of engines said to the upload
    quarantine: Quarantine | None = None  # of this key, where no engine stands in the store
    heard_at: float | None = None  # when the report came
    unwanted_since: float | None = None
    tokenizers: tuple[str, ...] = ()  # digests of those that models want to serve it with
    bundle_jobs: tuple[JobFacts, ...] = ()


@dataclass(frozen=True)
class EnginePlan:
    """The decision: the status to report, the attempt to begin, seconds until another look, a marker to leave."""

    status: EngineStatus
    start: int | None = None
    obsolete: tuple[JobFacts, ...] = ()
    check_in: float | None = None
    quarantine: Quarantine | None = None
    killed: int = 0  # attempts in a row that were killed for memory: the next one asks for more
    bundles: Mapping[str, int] = field(default_factory=dict)  # attempts to begin, by the tokenizer's digest
