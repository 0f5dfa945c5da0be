"""The kind `CompletionModel`: one code-completion model, from its checkpoint to its SLO."""

from __future__ import annotations

from typing import Annotated, Literal

from hotstart.operator.api.base import ApiModel, Kind, Rule, rules
from hotstart.operator.api.model_spec import Checkpoint, EngineSettings, Management, Rollout, Slo
from hotstart.operator.api.scalars import LabelValue
from hotstart.operator.api.scaling import Scaling
from hotstart.operator.api.serving import Serving
from hotstart.operator.api.status import CompletionModelStatus
from pydantic import ConfigDict, Field


class CompletionModelSpec(ApiModel):
    """What is wanted."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "completion-fits-sequence",
                "self.serving.maxNewTokens + self.engine.limits.inputTokens <= self.engine.limits.sequenceTokens",
                "serving.maxNewTokens + engine.limits.inputTokens must not be more than engine.limits.sequenceTokens",
                ".serving.maxNewTokens",
            ),
            Rule(
                "concurrency-fits-batch",
                "!has(self.scaling.concurrencyPerReplica) || "
                "self.scaling.concurrencyPerReplica <= self.engine.limits.batchSize",
                "scaling.concurrencyPerReplica must not be more than engine.limits.batchSize",
                ".scaling.concurrencyPerReplica",
            ),
        )
    )

    checkpoint: Annotated[Checkpoint, Field(description="The trained checkpoint to serve.")]
    engine: Annotated[EngineSettings, Field(description="The inference engine to build from it; a change is a build.")]
    serving: Annotated[Serving, Field(description="How requests become completions; a change is a rollout.")] = (
        Serving()
    )
    slo: Annotated[Slo, Field(description="The latency to hold.")] = Slo()
    scaling: Annotated[Scaling, Field(description="How many replicas serve, and who decides it.")] = Scaling()
    replicas: Annotated[
        int,
        Field(
            ge=0,
            le=1000,
            description="Replicas wanted (pods), read and written through /scale. In scaling.mode SLO Hotstart writes "
            "it: leave it out of your files.",
        ),
    ] = 1
    rollout: Annotated[Rollout, Field(description="How pods are replaced when the revision changes.")] = Rollout()
    management: Annotated[
        Management,
        Field(description="Managed, or Paused: nothing is written for this model but its status; its pods serve on."),
    ] = Management.MANAGED
    runtime_release: Annotated[
        LabelValue | None,
        Field(
            description="A word of yours that stands in the revision: a change of it replaces all pods, one after "
            "another, with pods of the images that the operator has now. It chooses no images."
        ),
    ] = None


class CompletionModel(Kind):
    """A code-completion model: Hotstart builds its engine, keeps replicas warm, routes to them and scales them."""

    kind: Literal["CompletionModel"] = "CompletionModel"
    spec: Annotated[CompletionModelSpec, Field(description="What is wanted.")]
    status: Annotated[
        CompletionModelStatus,
        Field(description="What Hotstart found out, did, and why. Written by the operator alone."),
    ] = Field(default_factory=CompletionModelStatus)
