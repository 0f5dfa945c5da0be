"""The model repository of a pod: which files, with what text. Pure; the pod agent writes them.

completion/config.pbtxt
completion/1/model.py       imports the completion model from the installed package
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from hotstart.exchange.messages import ServingOptions
from hotstart.exchange.names import TRITON_MODEL

MODEL_FILE = (
    "from hotstart.engines.triton.completion.model import TritonPythonModel\n\n__all__ = ['TritonPythonModel']\n"
)
OPTIONAL_INPUTS = ("prompt", "suffix", "options", "cancel")
OUTPUTS = ("text", "details")


@dataclass(frozen=True)
class ModelBundle:
    """What one completion model needs to know: its name for users, its engine's folder, how it serves."""

    model: str  # "namespace/name"
    engine_key: str
    engine_folder: Path
    serving: ServingOptions


def quote(text: str) -> str:
    """``text`` as a string of protobuf's text format."""
    return json.dumps(text, ensure_ascii=True)


def make_config(parameters: dict[str, str]) -> str:
    """config.pbtxt of a completion model: decoupled, unbatched, one instance, every input optional."""
    inputs = ",\n".join(
        f'  {{ name: "{name}" data_type: TYPE_STRING dims: [ 1 ] optional: true }}' for name in OPTIONAL_INPUTS
    )
    outputs = ",\n".join(f'  {{ name: "{name}" data_type: TYPE_STRING dims: [ 1 ] }}' for name in OUTPUTS)
    settings = "\n".join(
        f"parameters {{ key: {quote(name)} value {{ string_value: {quote(value)} }} }}"
        for name, value in parameters.items()
    )
    return (
        f'name: "{TRITON_MODEL}"\n'
        'backend: "python"\n'
        "max_batch_size: 0\n"
        "model_transaction_policy { decoupled: true }\n"
        f"input [\n{inputs}\n]\n"
        f"output [\n{outputs}\n]\n"
        "instance_group [ { kind: KIND_CPU count: 1 } ]\n"
        f"{settings}\n"
    )


def make_parameters(bundle: ModelBundle) -> dict[str, str]:
    """The model's parameters. They name the engine too, so that a loaded model can be recognised."""
    return {
        "model": bundle.model,
        "engine_key": bundle.engine_key,
        "engine_folder": str(bundle.engine_folder),
        "serving": bundle.serving.model_dump_json(),
    }


def make_repository(bundle: ModelBundle) -> dict[str, str]:
    """Path below the repository -> text."""
    return {
        f"{TRITON_MODEL}/config.pbtxt": make_config(make_parameters(bundle)),
        f"{TRITON_MODEL}/1/model.py": MODEL_FILE,
    }
