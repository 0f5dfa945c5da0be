"""What a person names on the command line -> typed values: a recipe or a model's file, and a checkpoint's place.

The rules that the API server checks in CEL are checked here by the same names, so that a file is refused by the same
sentence as by `kubectl apply`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from hotstart.engines.builder.settings import CheckpointAccess, make_checkpoint_access
from hotstart.engines.errors import Reason, Terminal
from hotstart.operator.api import CompletionModel, CompletionModelSpec
from hotstart.operator.api.base import RULES_KEY
from hotstart.operator.api.model_spec import EngineSettings, Limits
from pydantic import ValidationError

SOMEWHERE = "s3://checkpoint-of-the-command-line/"  # stands in a spec whose checkpoint was named beside it

_QUANTIZATIONS = {
    "tensorrt_llm": ("none", "int8_weight_only", "int4_weight_only", "fp8"),
    "ctranslate2": ("none", "int8", "int8_float32", "float32"),
}

#: The API's rules by name, as predicates that hold for a good spec.
Check = Callable[[CompletionModelSpec], bool]
CHECKS: Mapping[str, Check] = {
    "quantization-fits-runtime": lambda s: s.engine.quantization in _QUANTIZATIONS[s.engine.runtime],
    "dtype-fits-runtime": lambda s: s.engine.runtime != "ctranslate2" or s.engine.dtype in (None, "float32"),
    "tensor-parallel-fits-runtime": lambda s: s.engine.runtime != "ctranslate2" or s.engine.tensor_parallel == 1,
    "accelerator-required": lambda s: s.engine.runtime != "tensorrt_llm" or s.engine.accelerator is not None,
    "accelerator-forbidden": lambda s: s.engine.runtime != "ctranslate2" or s.engine.accelerator is None,
    "refit-fits-engine": lambda s: (
        s.engine.rebuild == "Full" or (s.engine.runtime == "tensorrt_llm" and s.engine.quantization == "none")
    ),
    "mig-is-one-gpu": lambda s: (
        s.engine.accelerator is None or s.engine.accelerator.mig_profile is None or s.engine.tensor_parallel == 1
    ),
    "input-shorter-than-sequence": lambda s: s.engine.limits.input_tokens < s.engine.limits.sequence_tokens,
    "concurrency-fits-batch": lambda s: (
        s.scaling.concurrency_per_replica is None or s.scaling.concurrency_per_replica <= s.engine.limits.batch_size
    ),
    "completion-fits-sequence": lambda s: (
        s.serving.max_new_tokens + s.engine.limits.input_tokens <= s.engine.limits.sequence_tokens
    ),
}


def read_recipe(path: Path) -> CompletionModelSpec:
    """The spec that a file of `spec.engine` means, or that of a whole CompletionModel.

    Raises:
        Terminal: InvalidSpec with the field's path.
    """
    value = read_yaml(path)
    if value.get("kind") == "CompletionModel":
        return read_model(path).spec
    body = {"checkpoint": {"uri": SOMEWHERE}, "engine": value, "serving": {"maxNewTokens": find_room(value)}}
    return check_spec(_validate(CompletionModelSpec.model_validate, body, path, strip="engine."), path)


def find_room(engine: Mapping[str, Any]) -> int:
    """Tokens that a completion may have with these limits; where they are none, validation says so later."""
    limits = engine.get("limits") or {}
    if not isinstance(limits, Mapping):
        return 1
    sequence, given = limits.get("sequenceTokens", 1024), limits.get("inputTokens", 960)
    return max(1, min(32, sequence - given)) if isinstance(sequence, int) and isinstance(given, int) else 1


def read_model(path: Path) -> CompletionModel:
    """A CompletionModel's file.

    Raises:
        Terminal: InvalidSpec with the field's path.
    """
    value = read_yaml(path)
    if value.get("kind") != "CompletionModel":
        raise _invalid(path, f"kind is {value.get('kind')!r}, it must be CompletionModel")
    model: CompletionModel = _validate(CompletionModel.model_validate, value, path, strip="")
    check_spec(model.spec, path)
    return model


class Loader(yaml.SafeLoader):
    """Dates are text, as to the API server."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: Path) -> dict[str, Any]:
    """One YAML mapping; of several documents the CompletionModel. Raises Terminal (InvalidSpec)."""
    try:
        documents = list(yaml.load_all(path.read_text(encoding="utf-8"), Loader))
    except (OSError, UnicodeDecodeError) as error:
        raise _invalid(path, f"it cannot be read: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _invalid(path, f"it is no YAML: {' '.join(str(error).split())}") from error
    mappings = [document for document in documents if isinstance(document, dict)]
    meant = [mapping for mapping in mappings if mapping.get("kind") == "CompletionModel"] or mappings
    if not meant:
        raise _invalid(path, "it holds no mapping")
    if len(meant) > 1:
        raise _invalid(path, f"it holds {len(meant)} documents: name a file with one CompletionModel")
    return meant[0]


def check_spec(spec: CompletionModelSpec, path: Path) -> CompletionModelSpec:
    """Raises Terminal (InvalidSpec) with the first rule of the API that the spec breaks."""
    messages = rule_messages()
    for name, holds in CHECKS.items():
        if not holds(spec):
            raise _invalid(path, messages[name])
    return spec


def rule_messages() -> dict[str, str]:
    """What the API server says where a rule is broken, by the rule's name: rules of the engine and of the whole."""
    schemas = (model.model_config.get("json_schema_extra") for model in (CompletionModelSpec, EngineSettings, Limits))
    declared = [rule for schema in schemas if isinstance(schema, dict) for rule in _rules(schema)]
    return {rule["name"]: rule["message"] for rule in declared}


def make_access(checkpoint: str, environment: Mapping[str, str] = os.environ, endpoint: str = "") -> CheckpointAccess:
    """Where a checkpoint named as a path or a URI is; credentials are those of the environment, as the AWS tools take.

    Raises:
        EngineError: InvalidSpec, AccessDenied.
    """
    uri = checkpoint if "://" in checkpoint else f"file://{Path(checkpoint).expanduser().resolve()}"
    if uri.startswith("pvc://"):
        message = f"{uri} is a volume of the cluster, which this machine does not see: name a copy of it as a folder."
        raise Terminal(Reason.INVALID_SPEC, message)
    if uri.startswith("file://") and not Path(uri.removeprefix("file://")).exists():
        message = f"{checkpoint} does not exist on this machine: name the checkpoint's folder or file."
        raise Terminal(Reason.CHECKPOINT_NOT_FOUND, message)
    value = json.dumps({"uri": uri, "endpoint": endpoint, "secretName": ""})
    return make_checkpoint_access({**environment, "HOTSTART_CHECKPOINT": value}, local=True)


def _rules(schema: Mapping[str, Any]) -> list[dict[str, str]]:
    return list(schema.get(RULES_KEY, ()))


def _validate(parse: Callable[[dict[str, Any]], Any], body: dict[str, Any], path: Path, *, strip: str) -> Any:
    try:
        return parse(body)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])).removeprefix(strip)
        raise _invalid(path, f"{field}: {first['msg']}") from error


def _invalid(path: Path, what: str) -> Terminal:
    return Terminal(Reason.INVALID_SPEC, f"{path}: {what}.")
