"""The recipe: everything that decides an engine's bytes or their validity, apart from the checkpoint. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

FULL, REFIT = "Full", "Refit"  # how new weights become an engine
PLAN_PREFIX = "refit-"  # of files of an engine: its plan without weights, which another refit begins from


@dataclass(frozen=True)
class Toolchain:
    """The programs that make and run an engine; a change of any of them is another engine."""

    converter: str  # name of our converter, e.g. "hotstart-llama-ct2"
    converter_version: int  # raised whenever its output changes
    runtime: str  # "ctranslate2" | "tensorrt_llm"
    runtime_version: str  # e.g. "4.8.5"
    libraries: tuple[tuple[str, str], ...] = ()  # further versions that matter, e.g. ("tensorrt", "10.14.1.48")


@dataclass(frozen=True)
class Platform:
    """Where an engine runs. GPU fields are empty for engines of a CPU."""

    cpu_architecture: str = "amd64"
    gpu_product: str = ""
    gpu_sm: str = ""
    gpu_memory: str = ""  # memory size or MIG profile


@dataclass(frozen=True)
class EngineLimits:
    """Upper bounds that an engine is built for: requests, tokens, tokens."""

    batch_size: int = 8
    input_tokens: int = 96
    sequence_tokens: int = 128


@dataclass(frozen=True)
class EngineRecipe:
    """What the user asks for, normalised, with the toolchain and the platform of the runtime release."""

    toolchain: Toolchain
    dtype: str  # float16 | bfloat16 | float32
    quantization: str  # ctranslate2: int8 | int8_float32 | float32; tensorrt_llm: none | int8_weight_only | ...
    tensor_parallel: int = 1
    limits: EngineLimits = field(default_factory=EngineLimits)
    platform: Platform = field(default_factory=Platform)
    rebuild: str = FULL  # REFIT: new weights of the same network go into an engine that stands

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, for the key, the manifest and a builder's environment."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> EngineRecipe:
        """The inverse of ``to_dict``.

        Raises:
            TypeError, KeyError, ValueError: a field is missing, unknown or of another form.
        """
        toolchain = dict(value["toolchain"])
        toolchain["libraries"] = tuple((str(n), str(v)) for n, v in toolchain.get("libraries", ()))
        rest = {k: v for k, v in value.items() if k not in ("toolchain", "limits", "platform")}
        return cls(
            toolchain=Toolchain(**toolchain),
            limits=EngineLimits(**value["limits"]),
            platform=Platform(**value["platform"]),
            **rest,
        )


CTRANSLATE2_TOOLCHAIN = Toolchain(
    converter="hotstart-llama", converter_version=1, runtime="ctranslate2", runtime_version="4.8.5"
)

#: The runtime of the pinned container (Triton 26.04 to 26.07 with TensorRT-LLM). Its tag is not in the key: a patched
#: image with the same libraries runs the same engines.
TENSORRT_LLM_VERSION = "1.2.1"
TENSORRT_VERSION = "10.14.1.48"
#: Raised whenever the options that we build with change (``runtimes/tensorrt_llm/build_command.py``).
BUILD_OPTIONS_VERSION = 1
BUILD_OPTIONS = "hotstart-build-options"


def make_tensorrt_llm_toolchain(converter: str, converter_version: int) -> Toolchain:
    """The toolchain of TensorRT-LLM engines whose checkpoint is converted by ``converter``."""
    return Toolchain(
        converter=converter,
        converter_version=converter_version,
        runtime="tensorrt_llm",
        runtime_version=TENSORRT_LLM_VERSION,
        libraries=((BUILD_OPTIONS, str(BUILD_OPTIONS_VERSION)), ("tensorrt", TENSORRT_VERSION)),
    )


#: Our converters, raised whenever what one writes changes. A script of TensorRT-LLM goes by the version of the runtime
#: and has 0.
CONVERTER_VERSIONS = {"hotstart-llama": 1, "hotstart-mpt": 1}


def make_toolchain(runtime: str, converter: str) -> Toolchain:
    """The toolchain of this release for a runtime and a converter (`architectures.Architecture.converters`)."""
    version = CONVERTER_VERSIONS.get(converter, 0)
    if runtime == "tensorrt_llm":
        return make_tensorrt_llm_toolchain(converter, version)
    return replace(CTRANSLATE2_TOOLCHAIN, converter=converter, converter_version=version)
