"""The status of a `CompletionModel`: what Hotstart found out, did, and why. Only the operator writes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from hotstart.operator.api.base import StatusModel
from hotstart.operator.api.conditions import Condition
from hotstart.operator.api.scalars import Duration, Timestamp
from pydantic import Field

Name = Annotated[str, Field(max_length=253)]
Digest = Annotated[str, Field(max_length=128)]
Word = Annotated[str, Field(max_length=64)]
Sentence = Annotated[str, Field(max_length=1024)]
InputText = Annotated[str, Field(max_length=256)]

#: Conditions are a list-map by type, so that several writers with server-side apply do not undo each other.
CONDITIONS_LIST = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}


class EngineReference(StatusModel):
    """The engine that the current revision serves or waits for."""

    name: Annotated[Name, Field(description="Name of the Engine in this namespace.")] = ""
    key: Annotated[
        Word,
        Field(
            description="Engine key: SHA-256 of everything that changes the engine's bytes or validity (64 hex digits)."
        ),
    ] = ""
    revision: Annotated[Word, Field(description="Revision of this model that uses the engine.")] = ""


Size = Annotated[int, Field(ge=0, le=2_147_483_647)]


class NetworkStatus(StatusModel):
    """Sizes of the network, from which its memory follows."""

    layers: Annotated[Size, Field(description="Layers (layers).")]
    hidden: Annotated[Size, Field(description="Width of a layer (values).")]
    intermediate: Annotated[Size, Field(description="Inner width of a feed-forward layer (values).")] = 0
    heads: Annotated[Size, Field(description="Heads of queries (heads); 0: not said.")] = 0
    kv_heads: Annotated[Size, Field(description="Heads of keys and values (heads).")]
    head_dim: Annotated[Size, Field(description="Width of a head (values).")]
    vocab: Annotated[Size, Field(description="Tokens of the vocabulary (tokens).")]
    context_length: Annotated[
        Size, Field(description="Longest sequence that the network was trained for (tokens); 0: not said.")
    ] = 0
    embedding_parameters: Annotated[
        int, Field(ge=0, description="Weights of the embeddings, counted once where they are tied (parameters).")
    ] = 0


class CheckpointStatus(StatusModel):
    """What the inspect Job found in the checkpoint."""

    uri: Annotated[str, Field(max_length=1024, description="URI that was inspected.")] = ""
    revision: Annotated[
        str, Field(max_length=128, description="spec.checkpoint.revision at the time of the inspection.")
    ] = ""
    digest: Annotated[Digest, Field(description="Digest over all files of the checkpoint (SHA-256, hex).")] = ""
    spec_hash: Annotated[
        Word,
        Field(description="Hash of the part of spec that the inspection belongs to; another one means inspect again."),
    ] = ""
    architecture: Annotated[Word, Field(description="Architecture of the model, such as llama.")] = ""
    format: Annotated[Word, Field(description="Form of its files, such as safetensors, torch or gguf.")] = ""
    parameters: Annotated[int | None, Field(ge=0, description="Weights of the model (number of parameters).")] = None
    size_bytes: Annotated[int | None, Field(ge=0, description="Size of all files of the checkpoint (bytes).")] = None
    tokenizer_digest: Annotated[Digest, Field(description="Digest of the tokenizer (SHA-256, hex).")] = ""
    files: Annotated[int | None, Field(ge=0, le=2_147_483_647, description="Files of the checkpoint (files).")] = None
    network: Annotated[
        NetworkStatus | None, Field(description="Sizes of the network; absent where the inspection could not tell.")
    ] = None


class LatencyStatus(StatusModel):
    """Latency of completions as the routers measured it."""

    percentile: Annotated[int, Field(ge=0, le=100, description="Which percentile value is (percent).")] = 95
    value: Annotated[
        Duration | None,
        Field(description="Latency at that percentile in steps of 10ms (duration); absent without traffic."),
    ] = None
    window: Annotated[Duration | None, Field(description="Time over which it was measured (duration).")] = None
    slo: Annotated[Duration | None, Field(description="spec.slo.latency that it is compared with (duration).")] = None


class Decision(StatusModel):
    """One scaling decision."""

    time: Annotated[Timestamp, Field(description="When it was taken (RFC 3339, UTC).")]
    from_replicas: Annotated[int, Field(alias="from", ge=0, description="Replicas before (pods).")]
    to_replicas: Annotated[int, Field(alias="to", ge=0, description="Replicas wanted after it (pods).")]
    reason: Annotated[Word, Field(description="Why, as one word.")]
    message: Annotated[Sentence, Field(description="Why, as a sentence.")] = ""
    inputs: Annotated[
        Mapping[str, InputText],
        Field(
            max_length=32, description="Figures that the decision was taken on, by name, each as text with its unit."
        ),
    ] = Field(default_factory=dict)


class ColdStart(StatusModel):
    """Where the time went when a pod last started to serve."""

    pod: Annotated[Name, Field(description="Pod that was measured.")] = ""
    measured_at: Annotated[Timestamp | None, Field(description="When it became ready (RFC 3339, UTC).")] = None
    total_milliseconds: Annotated[
        int | None, Field(ge=0, description="From the decision to create the pod until it was ready (milliseconds).")
    ] = None
    phases: Annotated[
        Mapping[str, Annotated[int, Field(ge=0)]],
        Field(max_length=32, description="Time of each phase by name (milliseconds)."),
    ] = Field(default_factory=dict)


class CompletionModelStatus(StatusModel):
    """What Hotstart found out, did, and why."""

    observed_generation: Annotated[
        int, Field(ge=0, description="metadata.generation that all of this status belongs to; written last.")
    ] = 0
    conditions: Annotated[
        tuple[Condition, ...],
        Field(
            max_length=16,
            json_schema_extra=CONDITIONS_LIST,
            description="Conditions by type. Ready is True when EngineReady, WorkloadReady and EndpointReady are; "
            "SLOMet, SLOAttainable, ScalingActive, MetricsAvailable, Progressing and Degraded never block it.",
        ),
    ] = ()
    replicas: Annotated[
        int, Field(ge=0, le=2_147_483_647, description="Pods that serve or are on their way, drained ones not (pods).")
    ] = 0
    ready_replicas: Annotated[
        int, Field(ge=0, le=2_147_483_647, description="Pods that are ready to serve (pods).")
    ] = 0
    selector: Annotated[
        str, Field(max_length=1024, description="Label selector of the serving pods, for /scale, HPAs and kubectl.")
    ] = ""
    revision: Annotated[Word, Field(description="Revision that new pods are made from.")] = ""
    plan: Annotated[
        Sentence, Field(description="What the last change of spec costs: builds, time, accelerators, replaced pods.")
    ] = ""
    engine: Annotated[EngineReference | None, Field(description="Engine of the current revision.")] = None
    checkpoint: Annotated[CheckpointStatus | None, Field(description="What inspection found in the checkpoint.")] = None
    latency: Annotated[LatencyStatus | None, Field(description="Latency over the last window.")] = None
    decisions: Annotated[
        tuple[Decision, ...],
        Field(
            max_length=10,
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
            description="Last scaling decisions, newest first (at most 10).",
        ),
    ] = ()
    cold_start: Annotated[ColdStart | None, Field(description="Last measured start of a pod.")] = None
    builds: Annotated[
        int, Field(ge=0, le=2_147_483_647, description="Build Jobs that were started for this model (Jobs).")
    ] = 0
