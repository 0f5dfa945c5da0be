"""The kind `Engine`: one inference engine, made by the operator only and named by the first 40 hex digits of its key.

Its name makes builds single-flight: two models that need the same engine meet in one object. Its spec never changes.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from hotstart.engines.recipe import EngineRecipe
from hotstart.operator.api.base import ApiModel, Kind, Rule, StatusModel, rules
from hotstart.operator.api.conditions import Condition
from hotstart.operator.api.model_spec import Accelerator, Checkpoint, Dtype, Limits, Quantization, Rebuild, Runtime
from hotstart.operator.api.scalars import Sha256, Timestamp
from hotstart.operator.api.status import CONDITIONS_LIST, Sentence
from pydantic import ConfigDict, Field

Version = Annotated[str, Field(min_length=1, max_length=64)]
PlatformWord = Annotated[str, Field(max_length=64)]


class EnginePhase(StrEnum):
    """Step of a build, in order, as the builder reports it; the operator adds the first and Stored."""

    PENDING = "Pending"
    STARTING = "Starting"
    DOWNLOADING = "Downloading"
    CONVERTING = "Converting"
    BUILDING = "Building"
    VERIFYING = "Verifying"
    CALIBRATING = "Calibrating"
    UPLOADING = "Uploading"
    UPLOADED = "Uploaded"
    STORED = "Stored"
    FAILED = "Failed"


class Library(ApiModel):
    """A library whose version matters to the engine's bytes or validity."""

    name: Annotated[Version, Field(description="Name of the library.")]
    version: Annotated[Version, Field(description="Version of the library.")]


class Toolchain(ApiModel):
    """The programs that make and run the engine."""

    converter: Annotated[Version, Field(description="Name of the converter.")]
    converter_version: Annotated[
        int, Field(ge=0, le=2_147_483_647, description="Version of the converter; raised whenever its output changes.")
    ]
    runtime: Annotated[Runtime, Field(description="Program that runs the engine.")]
    runtime_version: Annotated[Version, Field(description="Version of the runtime that the engine is valid for.")]
    libraries: Annotated[
        tuple[Library, ...],
        Field(
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
            description="Further libraries whose versions matter.",
        ),
    ] = ()


class Platform(ApiModel):
    """The machine that the engine is made for; the GPU fields are absent for engines of CPUs."""

    cpu_architecture: Annotated[Version, Field(description="CPU architecture, such as amd64.")] = "amd64"
    gpu_product: Annotated[PlatformWord, Field(description="GPU product, such as NVIDIA-H100-80GB-HBM3.")] = ""
    gpu_sm: Annotated[PlatformWord, Field(description="Compute capability of the GPU, such as sm_90.")] = ""
    gpu_memory: Annotated[PlatformWord, Field(description="Memory of the GPU, or its MIG profile.")] = ""


class Recipe(ApiModel):
    """How the engine is built from its checkpoint: `hotstart.engines.recipe.EngineRecipe` as the API writes it."""

    toolchain: Annotated[Toolchain, Field(description="The programs that make and run the engine.")]
    dtype: Annotated[Dtype, Field(description="Number format of activations and of weights that are not quantized.")]
    quantization: Annotated[Quantization, Field(description="How weights are stored.")]
    tensor_parallel: Annotated[int, Field(ge=1, le=8, description="GPUs that one replica is split over (GPUs).")] = 1
    limits: Annotated[Limits, Field(description="Sizes that the engine is built for.")]
    platform: Annotated[Platform, Field(description="The machine that the engine is made for.")] = Platform()
    rebuild: Annotated[Rebuild, Field(description="How new weights of the same network become an engine.")] = (
        Rebuild.FULL
    )

    @classmethod
    def from_engine_recipe(cls, recipe: EngineRecipe) -> Recipe:
        """The API's form of a recipe. Raises pydantic.ValidationError where a value has no place in the API."""
        values = recipe.to_dict()
        values["toolchain"]["libraries"] = [
            {"name": name, "version": version} for name, version in recipe.toolchain.libraries
        ]
        return cls.model_validate(values)

    def to_engine_recipe(self) -> EngineRecipe:
        """The recipe that key, manifest and builder work with; the inverse of `from_engine_recipe`."""
        values = self.model_dump(mode="json")
        values["toolchain"]["libraries"] = [(library.name, library.version) for library in self.toolchain.libraries]
        return EngineRecipe.from_dict(values)


class EngineSpec(ApiModel):
    """What is built. It never changes: another engine is another object."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "engine-is-immutable",
                "self == oldSelf",
                "an Engine never changes: another recipe or checkpoint is another Engine",
            )
        )
    )

    key: Annotated[
        Sha256,
        Field(
            description="Engine key: SHA-256 of everything that changes the engine's bytes or validity (64 hex digits)."
        ),
    ]
    runtime: Annotated[Runtime, Field(description="Program that runs the engine.")]
    checkpoint: Annotated[Checkpoint, Field(description="Where the checkpoint is read from.")]
    checkpoint_digest: Annotated[Sha256, Field(description="Digest over all files of the checkpoint (SHA-256, hex).")]
    tokenizer_digest: Annotated[Sha256, Field(description="Digest of the tokenizer (SHA-256, hex).")]
    recipe: Annotated[Recipe, Field(description="How it is built.")]
    accelerator: Annotated[
        Accelerator | None, Field(description="GPU that it is built for and runs on; absent for engines of CPUs.")
    ] = None


class Repeatability(StrEnum):
    """Whether repeated sweeps of a calibration agreed."""

    STEADY = "Steady"
    NOISY = "Noisy"


class LoadPointStatus(StatusModel):
    """P95 with so many requests at once."""

    concurrency: Annotated[int, Field(ge=1, description="Requests at once (requests).")]
    p95_milliseconds: Annotated[int, Field(ge=0, description="P95 of their latency (milliseconds).")]
    tokens_per_second: Annotated[
        str, Field(max_length=16, description="Tokens that they generate together (tokens/s, such as 36.2).")
    ] = "0"


class VerificationStatus(StatusModel):
    """How far the engine agrees with its checkpoint, token by token."""

    positions: Annotated[int, Field(ge=0, description="Positions of real code that were computed (positions).")]
    compared: Annotated[
        int, Field(ge=0, description="Positions whose margin exceeds epsilon: there both must agree (positions).")
    ]
    agreed: Annotated[int, Field(ge=0, description="Compared positions with the same top token (positions).")]
    agreement: Annotated[
        str, Field(max_length=16, description="Share of all positions with the same top token (such as 99.5%).")
    ]
    epsilon: Annotated[str, Field(max_length=16, description="Margin below which a difference is rounding (logits).")]
    worst_margin: Annotated[
        str, Field(max_length=16, description="Largest margin at which the top tokens differed (logits).")
    ]
    reference: Annotated[str, Field(max_length=64, description="What computed the expectation, such as numpy.")]


class ProfileStatus(StatusModel):
    """What calibration measured: one replica's speed, as whole completions through the completion model."""

    lone_milliseconds: Annotated[
        int, Field(ge=0, description="Latency of a lone request of inputTokens and newTokens (milliseconds).")
    ]
    input_tokens: Annotated[int, Field(ge=0, description="Tokens of the prompts that were measured (tokens).")]
    new_tokens: Annotated[int, Field(ge=0, description="Tokens that each request generated (tokens).")]
    prefill_tokens_per_second: Annotated[int, Field(ge=0, description="Speed of reading prompts (tokens/s).")]
    decode_tokens_per_second: Annotated[
        int, Field(ge=0, description="Most tokens that all requests together generate (tokens/s).")
    ]
    load: Annotated[
        tuple[LoadPointStatus, ...],
        Field(
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
            description="P95 by requests at once, ascending.",
        ),
    ] = ()
    cpus: Annotated[
        str, Field(max_length=16, description="CPUs that it was measured with (cores); empty for engines of GPUs.")
    ] = ""
    inter_threads: Annotated[
        int, Field(ge=1, description="Sequences that were worked on at once, ctranslate2 only (threads).")
    ] = 1
    intra_threads: Annotated[int, Field(ge=1, description="Threads for each of them, ctranslate2 only (threads).")] = 1
    noise: Annotated[
        str, Field(max_length=24, description="Largest difference between repeated sweeps, and the tolerance.")
    ] = ""
    seconds: Annotated[int, Field(ge=0, description="Time that the calibration took (seconds).")] = 0
    repeatability: Annotated[
        Repeatability, Field(description="Noisy: repeated sweeps differed by more than the tolerance.")
    ] = Repeatability.STEADY


class BundleStatus(StatusModel):
    """The files of a further tokenizer, which stand beside the engine in the store."""

    tokenizer_digest: Annotated[Sha256, Field(description="Digest of the tokenizer (SHA-256, hex).")]
    manifest_digest: Annotated[Sha256, Field(description="Digest of the bundle's manifest.json (SHA-256, hex).")]


class EngineStatus(StatusModel):
    """How far the build is, and where the engine stands."""

    observed_generation: Annotated[
        int, Field(ge=0, description="metadata.generation that all of this status belongs to; written last.")
    ] = 0
    conditions: Annotated[
        tuple[Condition, ...],
        Field(
            max_length=16,
            json_schema_extra=CONDITIONS_LIST,
            description="Conditions by type: Ready (the engine stands whole in the store), Progressing, Degraded.",
        ),
    ] = ()
    phase: Annotated[
        str | None,
        Field(json_schema_extra={"enum": [phase.value for phase in EnginePhase]}, description="Step of the build."),
    ] = None
    percent: Annotated[int | None, Field(ge=0, le=100, description="Share of the build that is done (percent).")] = None
    eta_seconds: Annotated[
        int | None, Field(ge=0, le=2_147_483_647, description="Estimated time until the build is done (seconds).")
    ] = None
    size_bytes: Annotated[int | None, Field(ge=0, description="Size of all files of the engine (bytes).")] = None
    location: Annotated[
        str, Field(max_length=1024, description="Where the engine stands in the store (s3:// URI).")
    ] = ""
    manifest_digest: Annotated[str, Field(max_length=64, description="Digest of manifest.json (SHA-256, hex).")] = ""
    tokenizer_digest: Annotated[
        str, Field(max_length=64, description="Digest of the tokenizer that stands among its files (SHA-256, hex).")
    ] = ""
    bundles: Annotated[
        tuple[BundleStatus, ...],
        Field(
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["tokenizerDigest"]},
            description="Further tokenizers of the same weights that models serve the engine with.",
        ),
    ] = ()
    attempts: Annotated[int, Field(ge=0, le=2_147_483_647, description="Build Jobs that were started (Jobs).")] = 0
    last_error: Annotated[
        Sentence, Field(description="Why the last attempt failed, in the last lines of the tool that failed.")
    ] = ""
    built_at: Annotated[Timestamp | None, Field(description="When the build was done (RFC 3339, UTC).")] = None
    build_seconds: Annotated[
        int | None, Field(ge=0, le=2_147_483_647, description="Time that the successful build took (seconds).")
    ] = None
    unused_since: Annotated[
        Timestamp | None,
        Field(description="Since when no model, pod or build uses the engine (RFC 3339, UTC); absent while one does."),
    ] = None
    verification: Annotated[
        VerificationStatus | None, Field(description="How far the engine agrees with its checkpoint.")
    ] = None
    profile: Annotated[ProfileStatus | None, Field(description="What calibration measured of the engine.")] = None


class Engine(Kind):
    """One inference engine, made by Hotstart from a checkpoint and a recipe; models share it."""

    kind: Literal["Engine"] = "Engine"
    spec: Annotated[EngineSpec, Field(description="What is built; it never changes.")]
    status: Annotated[
        EngineStatus,
        Field(description="How far the build is, and where the engine stands. Written by the operator alone."),
    ] = Field(default_factory=EngineStatus)
