"""What a platform engineer asks for: the spec of a `CompletionModel`, except serving and scaling.

Every default is written here and becomes a default of the CRD, so that what the API server stores is complete.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from hotstart.operator.api.base import ApiModel, Rule, rules
from hotstart.operator.api.scalars import (
    CheckpointUri,
    DnsName,
    Duration,
    HttpUrl,
    LabelValue,
    MigProfile,
    make_duration_schema,
)
from pydantic import ConfigDict, Field


class Runtime(StrEnum):
    """The program that runs an engine."""

    TENSORRT_LLM = "tensorrt_llm"
    CTRANSLATE2 = "ctranslate2"


class Dtype(StrEnum):
    """Number format of activations, and of weights that are not quantized."""

    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


class Quantization(StrEnum):
    """How weights are stored; which values a runtime takes is a rule of `EngineSettings`."""

    NONE = "none"
    INT8_WEIGHT_ONLY = "int8_weight_only"
    INT4_WEIGHT_ONLY = "int4_weight_only"
    FP8 = "fp8"
    INT8 = "int8"
    INT8_FLOAT32 = "int8_float32"
    FLOAT32 = "float32"


class Rebuild(StrEnum):
    """How new weights of the same network become an engine."""

    FULL = "Full"
    REFIT = "Refit"


class RolloutStrategy(StrEnum):
    """How pods of a new revision replace those of the old one."""

    SURGE = "surge"


class Management(StrEnum):
    """Whether Hotstart may write."""

    MANAGED = "Managed"
    PAUSED = "Paused"


class Checkpoint(ApiModel):
    """Where the trained checkpoint stands and how it is read."""

    uri: Annotated[
        CheckpointUri,
        Field(
            description="Folder or single file of the trained checkpoint: s3://BUCKET/PREFIX/, pvc://CLAIM/PATH (a "
            "PersistentVolumeClaim of this namespace, mounted read-only), or hf://ORG/NAME@COMMIT (the Hugging Face "
            "hub, at a commit of 40 hex digits); each may name one file, such as s3://BUCKET/FILE.gguf. A change is a "
            "new revision: the checkpoint is inspected again, and a rollout follows if its content differs."
        ),
    ]
    revision: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=128,
            description="Your own name for this state of the checkpoint, such as a date or a tag. Hotstart pins the "
            "content by digest; change this word to have the same URI inspected again.",
        ),
    ] = None
    secret_name: Annotated[
        DnsName | None,
        Field(
            description="Secret in this namespace. For s3://: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and "
            "optionally AWS_ENDPOINT_URL and AWS_REGION. For hf://: HF_TOKEN. Only the inspect and build Jobs read it. "
            "Without it the bucket or repository must be readable anonymously."
        ),
    ] = None
    endpoint: Annotated[
        HttpUrl | None,
        Field(
            description="URL of the S3 store or the hub that holds the checkpoint (scheme, host, port). Default: "
            "AWS_ENDPOINT_URL of the Secret, else AWS S3; for hf:// HF_ENDPOINT of the Secret, else "
            "https://huggingface.co."
        ),
    ] = None


class Limits(ApiModel):
    """The sizes that an engine is built for. They are part of the engine's key."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "input-shorter-than-sequence",
                "self.inputTokens < self.sequenceTokens",
                "inputTokens must be less than sequenceTokens: a sequence is the input and the completion",
                ".inputTokens",
            )
        )
    )

    batch_size: Annotated[int, Field(ge=1, le=4096, description="Most sequences in one batch (sequences).")] = 8
    input_tokens: Annotated[
        int,
        Field(
            ge=1,
            le=1_048_575,
            description="Most tokens of a prompt (tokens); a longer one is trimmed at its start, at line boundaries.",
        ),
    ] = 960
    sequence_tokens: Annotated[
        int, Field(ge=2, le=1_048_576, description="Most tokens of prompt and completion together (tokens).")
    ] = 1024


class Accelerator(ApiModel):
    """The GPU that an engine is built for and runs on: engines of one GPU product do not run on another."""

    product: Annotated[
        LabelValue,
        Field(
            description="GPU product as the node label nvidia.com/gpu.product has it, such as NVIDIA-H100-80GB-HBM3."
        ),
    ]
    mig_profile: Annotated[
        MigProfile | None,
        Field(description="MIG profile where the GPU is partitioned, such as 1g.10gb. Default: the whole GPU."),
    ] = None


class EngineSettings(ApiModel):
    """What engine is built from the checkpoint. Each field is part of the engine's key: a change is a build."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "quantization-fits-runtime",
                "self.runtime == 'tensorrt_llm'"
                " ? self.quantization in ['none', 'int8_weight_only', 'int4_weight_only', 'fp8']"
                " : self.quantization in ['none', 'int8', 'int8_float32', 'float32']",
                "tensorrt_llm takes none, int8_weight_only, int4_weight_only and fp8; "
                "ctranslate2 takes none, int8, int8_float32 and float32",
                ".quantization",
            ),
            Rule(
                "dtype-fits-runtime",
                "self.runtime != 'ctranslate2' || !has(self.dtype) || self.dtype == 'float32'",
                "ctranslate2 runs on CPUs and computes in float32: leave dtype out or set float32",
                ".dtype",
            ),
            Rule(
                "tensor-parallel-fits-runtime",
                "self.runtime != 'ctranslate2' || self.tensorParallel == 1",
                "ctranslate2 runs on one CPU: tensorParallel must be 1",
                ".tensorParallel",
            ),
            Rule(
                "accelerator-required",
                "self.runtime != 'tensorrt_llm' || has(self.accelerator)",
                "tensorrt_llm builds for one GPU product: set accelerator.product",
                ".accelerator",
            ),
            Rule(
                "accelerator-forbidden",
                "self.runtime != 'ctranslate2' || !has(self.accelerator)",
                "ctranslate2 runs on CPUs: leave accelerator out",
                ".accelerator",
            ),
            Rule(
                "refit-fits-engine",
                "self.rebuild == 'Full' || (self.runtime == 'tensorrt_llm' && self.quantization == 'none')",
                "Refit is for tensorrt_llm without quantization: leave rebuild out or set Full",
                ".rebuild",
            ),
            Rule(
                "mig-is-one-gpu",
                "!has(self.accelerator) || !has(self.accelerator.migProfile) || self.tensorParallel == 1",
                "a MIG partition is part of one GPU: tensorParallel must be 1 with accelerator.migProfile",
                ".tensorParallel",
            ),
        )
    )

    runtime: Annotated[
        Runtime, Field(description="Program that runs the engine: tensorrt_llm (NVIDIA GPUs) or ctranslate2 (CPUs).")
    ]
    dtype: Annotated[
        Dtype | None,
        Field(
            description="Number format of activations and of weights that are not quantized. Default: float16 for "
            "tensorrt_llm, float32 for ctranslate2, which takes no other."
        ),
    ] = None
    quantization: Annotated[
        Quantization,
        Field(
            description="How weights are stored. tensorrt_llm: none, int8_weight_only, int4_weight_only, fp8. "
            "ctranslate2: int8, int8_float32, float32; none means float32."
        ),
    ] = Quantization.NONE
    tensor_parallel: Annotated[
        int, Field(ge=1, le=8, description="GPUs of one node that one replica is split over (GPUs).")
    ] = 1
    limits: Annotated[Limits, Field(description="Sizes that the engine is built for.")] = Limits()
    accelerator: Annotated[
        Accelerator | None,
        Field(description="GPU to build for and run on; required for tensorrt_llm, refused for ctranslate2."),
    ] = None
    rebuild: Annotated[
        Rebuild,
        Field(
            description="How new weights become an engine. Full: the network is compiled anew. Refit: weights of the "
            "same network go into an engine that stands (trtllm-refit), which takes a fraction of the time and may "
            "fail its verification; then nothing is served and Full is the way."
        ),
    ] = Rebuild.FULL

    @property
    def recipe_dtype(self) -> Dtype:
        """dtype with the runtime's own default filled in, as the engine's recipe has it."""
        if self.dtype is not None:
            return self.dtype
        return Dtype.FLOAT32 if self.runtime is Runtime.CTRANSLATE2 else Dtype.FLOAT16

    @property
    def recipe_quantization(self) -> Quantization:
        """quantization in the runtime's own words, as the engine's recipe has it: ctranslate2 says float32 for none."""
        if self.runtime is Runtime.CTRANSLATE2 and self.quantization is Quantization.NONE:
            return Quantization.FLOAT32
        return self.quantization


class Slo(ApiModel):
    """The service level objective: so many percent of the completions in at most so long."""

    latency: Annotated[
        Duration,
        make_duration_schema("slo-latency-range", "1ms", "10m", "latency must be between 1ms and 10m"),
        Field(
            description="Longest time from the router's receipt of a request to the last useful byte (duration, such "
            "as 250ms)."
        ),
    ] = Duration("250ms")
    percentile: Annotated[
        int, Field(ge=50, le=99, description="Share of completions that must hold latency (percent).")
    ] = 95


class Rollout(ApiModel):
    """How pods are replaced when a revision changes."""

    strategy: Annotated[
        RolloutStrategy, Field(description="surge: new pods serve first, then as many old ones are drained.")
    ] = RolloutStrategy.SURGE
    max_surge: Annotated[
        int, Field(ge=1, le=100, description="Most pods above the wanted number while a rollout runs (pods).")
    ] = 1
