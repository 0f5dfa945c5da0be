"""Condition types and reasons: the one vocabulary of conditions, events, decisions and the runbook.

`Reason` is one enum on purpose: whoever sees a reason in `kubectl describe`, in an event or in a log finds the runbook
entry by the same word. Once they are released, words are only ever added.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from hotstart.operator.api.base import StatusModel
from hotstart.operator.api.scalars import Timestamp
from pydantic import Field


class ConditionType(StrEnum):
    """Types of conditions. `READY` of a model is the conjunction of the three after it; the others never block it."""

    READY = "Ready"
    ENGINE_READY = "EngineReady"
    WORKLOAD_READY = "WorkloadReady"
    ENDPOINT_READY = "EndpointReady"
    SLO_MET = "SLOMet"
    SLO_ATTAINABLE = "SLOAttainable"
    SCALING_ACTIVE = "ScalingActive"
    METRICS_AVAILABLE = "MetricsAvailable"
    PROGRESSING = "Progressing"
    DEGRADED = "Degraded"


#: Ready=True exactly when all of these are True.
READY_CONJUNCTION = (ConditionType.ENGINE_READY, ConditionType.WORKLOAD_READY, ConditionType.ENDPOINT_READY)


class ConditionStatus(StrEnum):
    """Status of a condition, as Kubernetes spells it."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Reason(StrEnum):
    """Why a condition stands as it does, an event was sent, or a decision taken."""

    # All is well, or nothing is known yet.
    READY = "Ready"
    PENDING = "Pending"
    UP_TO_DATE = "UpToDate"
    HEALTHY = "Healthy"
    PAUSED = "Paused"
    INVALID_SPEC = "InvalidSpec"
    INTERNAL_ERROR = "InternalError"

    # The checkpoint.
    CHECKPOINT_INSPECTING = "CheckpointInspecting"
    CHECKPOINT_NOT_FOUND = "CheckpointNotFound"
    CHECKPOINT_INCOMPLETE = "CheckpointIncomplete"
    CHECKPOINT_CORRUPT = "CheckpointCorrupt"
    CHECKPOINT_CHANGED = "CheckpointChanged"
    BUCKET_NOT_FOUND = "BucketNotFound"
    SECRET_NOT_FOUND = "SecretNotFound"
    ACCESS_DENIED = "AccessDenied"
    STORE_UNREACHABLE = "StoreUnreachable"
    STORE_CONFLICT = "StoreConflict"
    DISK_FULL = "DiskFull"
    INSPECTION_FAILED = "InspectionFailed"
    UNSUPPORTED_ARCHITECTURE = "UnsupportedArchitecture"
    UNSUPPORTED_RECIPE = "UnsupportedRecipe"
    TOKENIZER_MISMATCH = "TokenizerMismatch"
    MARKERS_NOT_IN_TOKENIZER = "MarkersNotInTokenizer"

    # The engine.
    ENGINE_STORED = "EngineStored"
    ENGINE_MISSING = "EngineMissing"
    ENGINE_BUILDING = "EngineBuilding"
    ENGINE_CORRUPT = "EngineCorrupt"
    BUILD_QUEUED = "BuildQueued"
    BUILD_FAILED = "BuildFailed"
    BUILD_RETRYING = "BuildRetrying"
    BUILD_TIMED_OUT = "BuildTimedOut"
    VERIFICATION_FAILED = "VerificationFailed"
    RUNTIME_NOT_AVAILABLE = "RuntimeNotAvailable"
    NO_FREE_ACCELERATOR = "NoFreeAccelerator"
    ACCELERATOR_MISMATCH = "AcceleratorMismatch"
    DOES_NOT_FIT = "DoesNotFit"
    OUT_OF_MEMORY = "OutOfMemory"
    TOOLCHAIN_MISMATCH = "ToolchainMismatch"
    ENGINE_QUARANTINED = "EngineQuarantined"

    # The workload.
    REPLICAS_READY = "ReplicasReady"
    REPLICAS_STARTING = "ReplicasStarting"
    REPLICAS_UNAVAILABLE = "ReplicasUnavailable"
    SCALED_TO_ZERO = "ScaledToZero"
    UNSCHEDULABLE = "Unschedulable"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    ENGINE_FETCH_FAILED = "EngineFetchFailed"
    ENGINE_LOAD_FAILED = "EngineLoadFailed"
    WARM_UP_FAILED = "WarmUpFailed"
    POD_CREATED = "PodCreated"
    POD_CREATE_FAILED = "PodCreateFailed"
    POD_DELETED = "PodDeleted"
    POD_REPLACED = "PodReplaced"
    PODS_CRASHING = "PodsCrashing"
    REVISION_STOPPED = "RevisionStopped"
    ROLLING_OUT = "RollingOut"
    DRAINING = "Draining"
    NODE_CORDONED = "NodeCordoned"
    QUOTA_EXCEEDED = "QuotaExceeded"
    ADMISSION_DENIED = "AdmissionDenied"
    AGENT_UNREACHABLE = "AgentUnreachable"

    # The endpoint.
    ENDPOINTS_PUBLISHED = "EndpointsPublished"
    NO_ENDPOINTS = "NoEndpoints"
    NO_ROUTER = "NoRouter"
    ROUTER_BEHIND = "RouterBehind"

    # The SLO and its metrics.
    WITHIN_SLO = "WithinSLO"
    ABOVE_SLO = "AboveSLO"
    NO_TRAFFIC = "NoTraffic"
    ATTAINABLE = "Attainable"
    LONE_REQUEST_MISSES_SLO = "LoneRequestMissesSLO"
    NOT_MEASURED = "NotMeasured"
    METRICS_FRESH = "MetricsFresh"
    METRICS_STALE = "MetricsStale"
    METRICS_MISSING = "MetricsMissing"

    # Scaling: states, then decisions.
    SCALING_BY_SLO = "ScalingBySLO"
    SCALING_EXTERNAL = "ScalingExternal"
    OVERRIDE_ACTIVE = "OverrideActive"
    OVERRIDE_ENDED = "OverrideEnded"
    DEMAND_ROSE = "DemandRose"
    DEMAND_FELL = "DemandFell"
    LATENCY_ABOVE_SLO = "LatencyAboveSLO"
    REQUESTS_WAITING = "RequestsWaiting"
    AT_MINIMUM = "AtMinimum"
    AT_MAXIMUM = "AtMaximum"
    HOLD_NO_DATA = "HoldNoData"
    HOLD_ROUTER_SILENT = "HoldRouterSilent"
    HOLD_STABILIZING = "HoldStabilizing"
    HOLD_ROLLING_OUT = "HoldRollingOut"
    HOLD_AT_TARGET = "HoldAtTarget"


class Condition(StatusModel):
    """A condition in the form of Kubernetes' metav1.Condition."""

    type: Annotated[
        str,
        Field(
            min_length=1,
            max_length=64,
            pattern="^[A-Za-z][A-Za-z0-9]*$",
            description="Type of the condition; at most one condition of each type.",
        ),
    ]
    status: Annotated[ConditionStatus, Field(description="True, False or Unknown.")]
    observed_generation: Annotated[
        int, Field(ge=0, description="metadata.generation that the condition was computed from; older means stale.")
    ] = 0
    last_transition_time: Annotated[
        Timestamp, Field(description="When status last changed from one value to another (RFC 3339, UTC, seconds).")
    ]
    reason: Annotated[
        str,
        Field(
            min_length=1,
            max_length=64,
            pattern="^[A-Za-z][A-Za-z0-9]*$",
            description="Why, as one word; events, scaling decisions and the runbook use the same words.",
        ),
    ]
    message: Annotated[str, Field(max_length=4096, description="Why, as a sentence with cause and remedy.")] = ""
