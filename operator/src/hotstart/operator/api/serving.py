"""The serving part of a `CompletionModel`'s spec: how requests become completions, and what a pod may use for it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from hotstart.operator.api.base import ApiModel, Rule, rules
from hotstart.operator.api.scalars import Duration, Quantity, make_duration_schema
from pydantic import ConfigDict, Field


class PromptFormat(StrEnum):
    """How prefix and suffix become one prompt."""

    PLAIN = "plain"
    FIM = "fim"


class Stop(StrEnum):
    """Where a completion ends by itself."""

    LINE = "line"
    BLOCK = "block"
    NONE = "none"


class Markers(ApiModel):
    """The model's own fill-in-the-middle tokens; each must be one token of its tokenizer, else the build fails."""

    prefix: Annotated[str, Field(min_length=1, max_length=64, description="Token before the text before the cursor.")]
    suffix: Annotated[str, Field(min_length=1, max_length=64, description="Token before the text after the cursor.")]
    middle: Annotated[str, Field(min_length=1, max_length=64, description="Token after which the model completes.")]


class Prompt(ApiModel):
    """How the text before and after the cursor becomes a prompt."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "markers-iff-fim",
                "(self.format == 'fim') == has(self.markers)",
                "format fim needs markers with prefix, suffix and middle; format plain takes none",
                ".markers",
            )
        )
    )

    format: Annotated[
        PromptFormat,
        Field(description="plain: the text before the cursor alone; fim: prefix, suffix and middle with markers."),
    ] = PromptFormat.PLAIN
    markers: Annotated[
        Markers | None, Field(description="Fill-in-the-middle tokens of this model; required for fim, else refused.")
    ] = None


class ResourceAmounts(ApiModel):
    """CPU and memory of one pod's Triton container."""

    cpu: Annotated[Quantity | None, Field(description="CPUs, such as '2' or '700m' (thousandths of a CPU).")] = None
    memory: Annotated[Quantity | None, Field(description="Memory in bytes with suffix, such as 1536Mi or 2Gi.")] = None


def _request_within_limit(name: str) -> Rule:
    have_both = f"has(self.requests) && has(self.requests.{name}) && has(self.limits) && has(self.limits.{name})"
    readable = f"isQuantity(self.requests.{name}) && isQuantity(self.limits.{name})"
    within = f"quantity(self.requests.{name}).compareTo(quantity(self.limits.{name})) <= 0"
    return Rule(
        f"{name}-request-within-limit",
        f"!({have_both} && {readable}) || {within}",
        f"requests.{name} must not be more than limits.{name}",
        f".requests.{name}",
    )


class Resources(ApiModel):
    """What a pod's Triton container asks of its node. GPUs follow from engine.tensorParallel."""

    model_config = ConfigDict(
        json_schema_extra=rules(_request_within_limit("cpu"), _request_within_limit("memory")),
    )

    requests: Annotated[
        ResourceAmounts | None, Field(description="What the scheduler sets aside for the container.")
    ] = None
    limits: Annotated[ResourceAmounts | None, Field(description="What the container may use at most.")] = None


class Queue(ApiModel):
    """The router's queue of one model: the only deep queue on a request's way."""

    max_requests: Annotated[
        int,
        Field(ge=0, le=100_000, description="Most requests that wait in each router; one more is answered with 429."),
    ] = 64
    deadline: Annotated[
        Duration,
        make_duration_schema("queue-deadline-range", "1ms", "10m", "deadline must be between 1ms and 10m"),
        Field(description="Longest wait for a free replica (duration, such as 2s); then the answer is 429."),
    ] = Duration("2s")


class Serving(ApiModel):
    """How requests are turned into completions, and what a pod may use."""

    prompt: Annotated[Prompt, Field(description="How a prompt is put together.")] = Prompt()
    max_new_tokens: Annotated[
        int, Field(ge=1, le=65_536, description="Most tokens of a completion (tokens); a request may ask for fewer.")
    ] = 32
    stop: Annotated[
        Stop, Field(description="Where a completion ends by itself: at the end of the line, of the block, or nowhere.")
    ] = Stop.LINE
    stop_strings: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=128)], ...],
        Field(max_length=8, description="Texts that end a completion and are not part of it (at most 8)."),
    ] = ()
    inter_threads: Annotated[
        int, Field(ge=1, le=256, description="Sequences that a ctranslate2 pod works on at once (threads).")
    ] = 1
    intra_threads: Annotated[
        int, Field(ge=1, le=256, description="CPU threads for each such sequence, ctranslate2 only (threads).")
    ] = 1
    resources: Annotated[Resources | None, Field(description="CPU and memory of each pod's Triton container.")] = None
    queue: Annotated[Queue, Field(description="The router's queue for this model.")] = Queue()
    hold_requests: Annotated[
        Duration,
        make_duration_schema("hold-requests-range", "0s", "1h", "holdRequests must be between 0s and 1h"),
        Field(
            description="How long the router holds a request while no replica is ready and one is coming (duration, "
            "such as 30s); 0s answers 503 at once."
        ),
    ] = Duration("30s")
