"""Which networks Hotstart knows: one table from the names in ``config.json`` to the converters of the runtimes. Pure.

Inspection recognises a checkpoint by it, the operator refuses by it what a runtime does not build, and the build takes
from it how TensorRT-LLM's own converters are called. Their paths and options are those of TensorRT-LLM 1.2.1 in its
container (``/app/examples``), where each is a script of its own and not all take the same options.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hotstart.engines.errors import Reason, Terminal

CTRANSLATE2 = "ctranslate2"
TENSORRT_LLM = "tensorrt_llm"
#: Converters of ours; any other name is the path of a script in the container.
LLAMA_CONVERTER, MPT_CONVERTER = OURS = ("hotstart-llama", "hotstart-mpt")
#: Formats that each runtime's converters can read.
FORMATS = {
    CTRANSLATE2: ("safetensors", "torch", "gguf"),
    TENSORRT_LLM: ("safetensors", "torch", "tensorrt_llm"),
}
#: Recipe's quantization -> ``--weight_only_precision``.
WEIGHT_ONLY = {"int8_weight_only": "int8", "int4_weight_only": "int4"}
DTYPES = ("float16", "bfloat16", "float32")

_CORE = "/app/examples/models/core"
_CONTRIB = "/app/examples/models/contrib"


@dataclass(frozen=True)
class Architecture:
    """One network: its name in ``config.json``, its family, and runtime -> converter for each runtime that builds it.

    ``options`` are arguments of the upstream converter that are this network's own.
    """

    name: str
    family: str
    converters: Mapping[str, str]
    options: tuple[str, ...] = field(default=())

    @property
    def runtimes(self) -> tuple[str, ...]:
        """The runtimes that build it, by name."""
        return tuple(sorted(self.converters))


def _known(name: str, family: str, script: str, *options: str) -> Architecture:
    return Architecture(name, family, {TENSORRT_LLM: f"{script}/convert_checkpoint.py"}, options)


def _llama(name: str) -> Architecture:
    upstream = f"{_CORE}/llama/convert_checkpoint.py"
    return Architecture(name, "llama", {CTRANSLATE2: LLAMA_CONVERTER, TENSORRT_LLM: upstream}, ("--load_model_on_cpu",))


def _mpt(name: str) -> Architecture:
    return Architecture(name, "mpt", {CTRANSLATE2: MPT_CONVERTER, TENSORRT_LLM: MPT_CONVERTER})


# Options that are no matter of taste:
#   gpt:    the variant is otherwise guessed from the folder's name, and GPTBigCode's type is none of the guesses;
#   *_cpu:  without it the weights go to a GPU, which the conversion step does not have;
#   gemma:  the kind of checkpoint has no default.
ARCHITECTURES: tuple[Architecture, ...] = (
    _mpt("MPTForCausalLM"),
    _mpt("MptForCausalLM"),
    _llama("LlamaForCausalLM"),
    _llama("MistralForCausalLM"),
    _known("Qwen2ForCausalLM", "qwen", f"{_CORE}/qwen", "--load_model_on_cpu"),
    _known("GemmaForCausalLM", "gemma", f"{_CORE}/gemma", "--ckpt-type", "hf", "--load_model_on_cpu"),
    _known("Gemma2ForCausalLM", "gemma", f"{_CORE}/gemma", "--ckpt-type", "hf", "--load_model_on_cpu"),
    _known("PhiForCausalLM", "phi", f"{_CORE}/phi"),
    _known("Phi3ForCausalLM", "phi", f"{_CORE}/phi"),
    _known("GPTBigCodeForCausalLM", "gpt", f"{_CORE}/gpt", "--gpt_variant", "starcoder", "--load_model_on_cpu"),
    _known("Starcoder2ForCausalLM", "gpt", f"{_CORE}/gpt", "--gpt_variant", "starcoder2", "--load_model_on_cpu"),
    _known("GPTJForCausalLM", "gptj", f"{_CONTRIB}/gptj"),
    _known("GPTNeoXForCausalLM", "gptneox", f"{_CONTRIB}/gptneox"),
    _known("FalconForCausalLM", "falcon", f"{_CONTRIB}/falcon"),
    _known("BloomForCausalLM", "bloom", f"{_CONTRIB}/bloom"),
)
_BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}
#: ``general.architecture`` of a GGUF -> name as in config.json.
GGUF_ARCHITECTURES = {"llama": "LlamaForCausalLM"}
#: ``architecture`` in the config.json of a TensorRT-LLM checkpoint: the classes that read these families there.
TENSORRT_LLM_NAMES = frozenset({*_BY_NAME, "GPTForCausalLM", "QWenForCausalLM", "LLaMAForCausalLM"})


def find_architecture(name: str) -> Architecture | None:
    """The row of that name in ``config.json``'s ``architectures``, or None."""
    return _BY_NAME.get(name)


def known_names(runtime: str | None = None) -> tuple[str, ...]:
    """Names in the order of the table; with ``runtime`` only those that it builds."""
    return tuple(a.name for a in ARCHITECTURES if runtime is None or runtime in a.converters)


def require_architecture(name: str) -> Architecture:
    """The row of that name.

    Raises:
        Terminal: UnsupportedArchitecture, with all that are known.
    """
    found = find_architecture(name)
    if found is None:
        raise Terminal(
            Reason.UNSUPPORTED_ARCHITECTURE,
            f"The checkpoint's architecture is {name}; known are {', '.join(known_names())}.",
        )
    return found


def check_buildable(name: str, checkpoint_format: str, runtime: str) -> None:
    """Raises Terminal where ``runtime`` builds no such network or its converter cannot read the files.

    UnsupportedArchitecture says which runtime does; ``checkpoint_format`` is one of ``FORMATS``' values. A TensorRT-LLM
    checkpoint is of no use to another runtime, and for its own it needs no converter.
    """
    if checkpoint_format == TENSORRT_LLM:
        if runtime != TENSORRT_LLM:
            raise Terminal(
                Reason.UNSUPPORTED_ARCHITECTURE,
                f"The checkpoint is already converted for TensorRT-LLM, and the runtime {runtime} cannot use it: set "
                "engine.runtime to tensorrt_llm, or use the original checkpoint.",
            )
        return
    architecture = require_architecture(name)
    readable = FORMATS.get(runtime, ())
    if runtime not in architecture.converters:
        raise Terminal(
            Reason.UNSUPPORTED_ARCHITECTURE,
            f"The runtime {runtime} does not build {name}; {' and '.join(architecture.runtimes)} does: set "
            f"engine.runtime. {runtime} builds {', '.join(known_names(runtime)) or 'nothing that is known'}.",
        )
    if checkpoint_format not in readable:
        others = [other for other in architecture.runtimes if checkpoint_format in FORMATS[other]]
        change = f"set engine.runtime to {' or '.join(others)}" if others else "upload one of those"
        raise Terminal(
            Reason.UNSUPPORTED_ARCHITECTURE,
            f"The runtime {runtime} builds {name} from {', '.join(readable)}, the checkpoint is of the format "
            f"{checkpoint_format}: {change}, or use the original checkpoint.",
        )


@dataclass(frozen=True)
class ConvertOptions:
    """What the conversion to a TensorRT-LLM checkpoint depends on; ``quantization`` and ``dtype`` as in the recipe."""

    model_dir: str
    output_dir: str
    dtype: str
    tensor_parallel: int = 1
    quantization: str = "none"


def make_convert_argv(architecture: Architecture, options: ConvertOptions) -> tuple[str, ...]:
    """The exact command that converts a Hugging Face folder with TensorRT-LLM's own converter. Pure.

    Raises:
        Terminal: UnsupportedRecipe, the converter takes no such dtype or quantization; UnsupportedArchitecture, the
            network has no upstream converter.
    """
    script = architecture.converters.get(TENSORRT_LLM, "")
    if not script or script in OURS:
        raise Terminal(
            Reason.UNSUPPORTED_ARCHITECTURE, f"{architecture.name} is not converted by a script of TensorRT-LLM."
        )
    if options.dtype not in DTYPES or options.quantization not in ("none", *WEIGHT_ONLY):
        raise Terminal(
            Reason.UNSUPPORTED_RECIPE,
            f"The converter for {architecture.name} takes dtype {', '.join(DTYPES)} and quantization none, "
            f"{', '.join(WEIGHT_ONLY)}; the recipe asks for {options.dtype} and {options.quantization}.",
        )
    argv = ["python3", script, "--model_dir", options.model_dir, "--output_dir", options.output_dir]
    argv += ["--dtype", options.dtype]  # the default "auto" would make float16 of float32
    argv += _parallel(architecture, options)
    if options.quantization in WEIGHT_ONLY:
        argv += ["--use_weight_only", "--weight_only_precision", WEIGHT_ONLY[options.quantization]]
    return (*argv, *architecture.options)


def _parallel(architecture: Architecture, options: ConvertOptions) -> list[str]:
    """One rank after the other: each at once would hold the whole network in memory once more.

    Gemma's converter knows tensor parallelism only, by another name, and no other way.
    """
    if architecture.family == "gemma":
        return ["--world-size", str(options.tensor_parallel)]
    return ["--tp_size", str(options.tensor_parallel), "--pp_size", "1", "--workers", "1"]
