"""The messages of the exchange, as pydantic types: the contract between the operator and its agents.

The operator POSTs one *Request to ``EXCHANGE_PATH`` of an agent about once a second; the body of the answer is the
matching *Report. Every request is signed (see ``signing``). Unknown fields are ignored, so that both sides may be one
version apart. Times are seconds since the epoch, durations are in seconds unless the name says otherwise.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from hotstart.exchange.names import Kept
from pydantic import BaseModel, ConfigDict, Field

PROTOCOL = 1


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)


# ---------------------------------------------------------------------------------------------- serving options


class PromptFormat(StrEnum):
    PLAIN = "plain"
    FIM = "fim"


class StopMode(StrEnum):
    LINE = "line"
    BLOCK = "block"
    NONE = "none"


class ServingOptions(Message):
    """How the completion model turns a request into tokens and back. Part of the serving bundle, not of the engine."""

    prompt_format: PromptFormat = PromptFormat.PLAIN
    fim_prefix: str = ""
    fim_suffix: str = ""
    fim_middle: str = ""
    max_input_tokens: int
    max_new_tokens: int
    stop: StopMode = StopMode.LINE
    stop_strings: tuple[str, ...] = ()
    inter_threads: int = 1
    intra_threads: int = 1
    slo_ms: int = 250
    queue_limit: int = 64  # requests that may wait in a pod


# --------------------------------------------------------------------------------------------------- pod agent


class EngineFile(Message):
    """One file of an engine: path relative to its folder, size in bytes, sha256 in hex, presigned GET URL or ''."""

    path: str
    size: int
    sha256: str
    url: str = ""


class PodAssignment(Message):
    """What a pod shall serve. ``generation`` grows with each change; an agent ignores an older one."""

    generation: int
    model: str  # "namespace/name"
    engine_key: str
    runtime: Literal["ctranslate2", "tensorrt_llm"]
    manifest_sha256: str
    serving: ServingOptions
    tokenizer_digest: str = ""  # with a tokenizer other than the engine's own: its digest, and that of the manifest
    bundle_sha256: str = ""  # of its bundle; the bundle's files take the place of the engine's


class PodRequest(Message):
    kind: Literal["pod"] = "pod"
    protocol: int = PROTOCOL
    assignment: PodAssignment | None = None
    files: tuple[EngineFile, ...] = ()  # with URLs, sent until the report's state is past FETCHING
    drain: bool = False  # finish what runs, then report idle; nothing new comes from routers


class PodState(StrEnum):
    EMPTY = "Empty"  # no assignment yet
    FETCHING = "Fetching"
    VERIFYING = "Verifying"
    LOADING = "Loading"
    WARMING = "Warming"
    READY = "Ready"
    RELOADING = "Reloading"  # Triton went away after Ready; loading again
    FAILED = "Failed"


class PodFailure(Message):
    reason: str  # CamelCase, one of hotstart.operator.api's reasons
    message: str  # cause and remedy in one or two sentences
    retryable: bool
    killed: bool = False  # a process of it was ended for want of memory: another try needs more


class PodReport(Message):
    protocol: int = PROTOCOL
    pod_uid: str
    state: PodState
    generation: int = 0
    engine_key: str = ""
    phases: dict[str, float] = Field(default_factory=dict)  # seconds: start, fetch, verify, load, warmup
    bytes_done: int = 0
    bytes_total: int = 0
    failure: PodFailure | None = None
    in_flight: int = 0
    queued: int = 0
    completed: int = 0


# ------------------------------------------------------------------------------------------------------ router


class Endpoint(Message):
    """One pod that serves a model: ``host:port`` of its Triton gRPC, the most requests it may hold of this router."""

    pod: str
    address: str
    cap: int


class ModelRoute(Message):
    """One model as the router has to know it."""

    model: str  # "namespace/name"
    endpoints: tuple[Endpoint, ...] = ()
    coming: bool = False  # a replica is on its way: requests may be held
    unavailable_reason: str = ""  # said to clients with 503 where there is no endpoint
    slo_ms: int = 250
    max_new_tokens: int = 32
    queue_limit: int = 256
    queue_deadline: float = 5.0
    hold: float = 30.0
    created: int = 0  # seconds since the epoch, for GET /v1/models
    prompt_format: str = ""  # a PromptFormat; "" is unknown: an operator that does not say it


class RouterRequest(Message):
    kind: Literal["router"] = "router"
    protocol: int = PROTOCOL
    generation: int  # grows with each change of routes
    routes: tuple[ModelRoute, ...] = ()
    cursor: int = 0  # last second of statistics that the operator has


class ModelSecond(Message):
    """What one router saw of one model in one second. Latency counts from receipt to the last byte."""

    second: int
    model: str
    arrivals: int = 0
    completed: int = 0
    failed: int = 0
    rejected: int = 0  # 429 and 503 of the router, and what the model itself called the client's mistake
    cancelled: int = 0  # the client left before the SLO had passed: censored
    cancelled_late: int = 0  # the client left after it: counts as a violation
    in_flight_sum: float = 0.0  # integral over the second of requests at pods
    queued_sum: float = 0.0  # integral over the second of requests in the queue
    within_slo: int = 0  # completed within the SLO's latency, counted exactly
    latency_buckets: tuple[int, ...] = ()  # counts by LATENCY_EDGES_MS, the last one is +Inf; () means all zero


# Upper edges in ms, 10 % apart: a quantile read off them by interpolation is right to a few per cent.
LATENCY_EDGES_MS: tuple[float, ...] = (*(round(5.0 * 1.1**i, 1) for i in range(87)), 20000.0)


class RouterReport(Message):
    protocol: int = PROTOCOL
    pod_uid: str
    generation: int
    cursor: int
    seconds: tuple[ModelSecond, ...] = ()


# ----------------------------------------------------------------------------------------------------- builder


class UploadPart(Message):
    path: str
    number: int  # from 1
    url: str  # presigned PUT of upload_part


class RefitBase(Message):
    """The engine whose plan new weights go into: its files, and the facts of its network. Empty: none stands."""

    engine: str = ""
    facts: dict[str, Any] = Field(default_factory=dict)
    files: tuple[EngineFile, ...] = ()


class KeptWish(Message):
    """A builder's wish for a presigned URL of what is kept under ``name``."""

    what: Kept
    name: Annotated[str, Field(pattern=r"^[0-9a-f]{40,64}$")]
    way: Literal["get", "put"]


class KeptUrl(Message):
    wish: KeptWish
    url: str


class BuildRequest(Message):
    """The operator's word to a builder. Upload ids live with the builder, so a new operator goes on where it was."""

    kind: Literal["build"] = "build"
    protocol: int = PROTOCOL
    upload_ids: dict[str, str] = Field(default_factory=dict)  # answers files without one: path -> upload id
    parts: tuple[UploadPart, ...] = ()  # answers ``wants_parts``
    kept: KeptUrl | None = None  # answers ``wants_kept``
    refit_base: RefitBase | None = None  # answers ``wants_refit_base``
    published: bool = False  # manifest written: the builder may exit 0
    cancel: bool = False


class BuildPhase(StrEnum):
    STARTING = "Starting"
    DOWNLOADING = "Downloading"
    CONVERTING = "Converting"
    BUILDING = "Building"  # only where the runtime compiles what was converted
    VERIFYING = "Verifying"
    CALIBRATING = "Calibrating"
    UPLOADING = "Uploading"
    UPLOADED = "Uploaded"  # waits for ``published``
    FAILED = "Failed"


class WantedPart(Message):
    path: str
    number: int


class BuiltFile(Message):
    path: str
    size: int
    sha256: str
    upload_id: str = ""
    etags: tuple[str, ...] = ()  # of the parts, in order, once all are up


class BuildReport(Message):
    protocol: int = PROTOCOL
    pod_uid: str
    engine_key: str
    phase: BuildPhase
    percent: int = 0  # of the whole build, 0 to 100
    eta_seconds: float | None = None
    files: tuple[BuiltFile, ...] = ()  # from UPLOADING on
    wants_parts: tuple[WantedPart, ...] = ()
    wants_kept: KeptWish | None = None
    wants_refit_base: bool = False
    refit_facts: dict[str, Any] = Field(default_factory=dict)  # with it: of the network that is built
    manifest: str = ""  # canonical JSON of the manifest, once UPLOADED
    failure: PodFailure | None = None
    log_tail: tuple[str, ...] = ()
