"""The scaling part of a `CompletionModel`'s spec: who decides the number of replicas, and within which bounds."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from hotstart.operator.api.base import ApiModel, Rule, rules
from hotstart.operator.api.scalars import Duration, Timestamp, make_duration_schema
from pydantic import ConfigDict, Field


class ScalingMode(StrEnum):
    """Who writes spec.replicas."""

    SLO = "SLO"
    EXTERNAL = "External"


class Override(ApiModel):
    """On-call's lever: a fixed number of replicas that ends by itself."""

    replicas: Annotated[
        int,
        Field(ge=0, le=1000, description="Replicas while the override lasts (pods); may lie outside min and max."),
    ]
    until: Annotated[
        Timestamp, Field(description="When the override ends (RFC 3339 with zone, such as 2026-03-01T18:00:00Z).")
    ]
    reason: Annotated[str, Field(min_length=1, max_length=256, description="Why, for whoever reads it at night.")]


class Scaling(ApiModel):
    """How many replicas serve."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "min-replicas-within-max",
                "self.minReplicas <= self.maxReplicas",
                "minReplicas must not be more than maxReplicas",
                ".minReplicas",
            ),
            Rule(
                "override-in-slo-mode",
                "!has(self.override) || self.mode == 'SLO'",
                "override works in mode SLO; in mode External set spec.replicas",
                ".override",
            ),
        )
    )

    mode: Annotated[
        ScalingMode,
        Field(
            description="SLO: Hotstart scales to hold spec.slo and is the only writer of spec.replicas. External: "
            "an HPA, KEDA or kubectl scale writes it, Hotstart only advises."
        ),
    ] = ScalingMode.SLO
    min_replicas: Annotated[int, Field(ge=0, le=1000, description="Fewest replicas in mode SLO (pods).")] = 1
    max_replicas: Annotated[int, Field(ge=1, le=1000, description="Most replicas in mode SLO (pods).")] = 1
    concurrency_per_replica: Annotated[
        int | None,
        Field(
            ge=1,
            le=4096,
            description="Requests that one replica holds at once within the SLO (requests), in place of what its "
            "engine's calibration says; demand is measured against it, and the router sends a pod no more. Leave it "
            "out: without it the calibrated figure counts, and 1 where there is none.",
        ),
    ] = None
    scale_down_stabilization: Annotated[
        Duration,
        make_duration_schema(
            "scale-down-stabilization-range", "0s", "24h", "scaleDownStabilization must be between 0s and 24h"
        ),
        Field(
            description="How long demand must have been lower before replicas are taken away (duration, such as 60s)."
        ),
    ] = Duration("60s")
    override: Annotated[
        Override | None,
        Field(description="A fixed number of replicas until a time, for on-call; it wins in mode SLO, and then ends."),
    ] = None
