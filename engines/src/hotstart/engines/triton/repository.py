"""The model repository of a pod: which files, with what text. Pure; the pod agent writes them.

completion/config.pbtxt
completion/1/model.py       imports the completion model from the installed package
tensorrt_llm/config.pbtxt   for engines of tensorrt_llm: the C++ backend, which the completion model calls

The last file is written last: a server that starts with its models (tensor parallel) waits for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hotstart.engines.triton.trtllm_config import (
    TRTLLM_MODEL,
    EngineBuild,
    make_engine_parameters,
    make_model_metrics,
    make_trtllm_config,
    parameter,
)
from hotstart.exchange.messages import ServingOptions
from hotstart.exchange.names import TRITON_MODEL

MODEL_FILE = (
    "from hotstart.engines.triton.completion.model import TritonPythonModel\n\n__all__ = ['TritonPythonModel']\n"
)
OPTIONAL_INPUTS = ("prompt", "suffix", "options", "cancel")
OUTPUTS = ("text", "details")


@dataclass(frozen=True)
class ModelBundle:
    """What one completion model needs to know: its name for users, its engine's folder, how it serves.

    ``build`` is of engines of tensorrt_llm only. ``histograms``: whether the server knows ``model_metrics``.
    """

    model: str  # "namespace/name"
    engine_key: str
    engine_folder: Path
    serving: ServingOptions
    build: EngineBuild | None = None
    histograms: bool = False


def make_config(parameters: dict[str, str], *, histograms: bool = False) -> str:
    """config.pbtxt of a completion model: decoupled, unbatched, one instance, every input optional."""
    inputs = ",\n".join(
        f'  {{ name: "{name}" data_type: TYPE_STRING dims: [ 1 ] optional: true }}' for name in OPTIONAL_INPUTS
    )
    outputs = ",\n".join(f'  {{ name: "{name}" data_type: TYPE_STRING dims: [ 1 ] }}' for name in OUTPUTS)
    settings = "\n".join(parameter(name, value) for name, value in parameters.items())
    metrics = "".join(f"{line}\n" for line in make_model_metrics()) if histograms else ""
    return (
        f'name: "{TRITON_MODEL}"\n'
        'backend: "python"\n'
        "max_batch_size: 0\n"
        "model_transaction_policy { decoupled: true }\n"
        f"input [\n{inputs}\n]\n"
        f"output [\n{outputs}\n]\n"
        "instance_group [ { kind: KIND_CPU count: 1 } ]\n"
        f"{settings}\n{metrics}"
    )


def make_parameters(bundle: ModelBundle) -> dict[str, str]:
    """The model's parameters. They name the engine too, so that a loaded model can be recognised."""
    return {
        "model": bundle.model,
        "engine_key": bundle.engine_key,
        "engine_folder": str(bundle.engine_folder),
        "serving": bundle.serving.model_dump_json(),
    }


def make_engine_settings(bundle: ModelBundle) -> dict[str, str] | None:
    """The parameters of the model ``tensorrt_llm``; None where the completion model runs the engine itself."""
    if bundle.build is None:
        return None
    return make_engine_parameters(bundle.build, bundle.engine_folder).to_strings()


def make_repository(bundle: ModelBundle) -> dict[str, str]:
    """Path below the repository -> text, in the order in which they are to be written."""
    files = {
        f"{TRITON_MODEL}/config.pbtxt": make_config(make_parameters(bundle), histograms=bundle.histograms),
        f"{TRITON_MODEL}/1/model.py": MODEL_FILE,
    }
    if bundle.build is not None:
        config = make_trtllm_config(bundle.build, bundle.engine_folder, histograms=bundle.histograms)
        files[f"{TRTLLM_MODEL}/1/.keep"] = ""  # a model without a folder of its version is none
        files[f"{TRTLLM_MODEL}/config.pbtxt"] = config
    return files
