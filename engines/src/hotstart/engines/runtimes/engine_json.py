"""engine.json: what the completion model has to know of an engine, beside its own files. Pure."""

from __future__ import annotations

import json

from hotstart.engines.checkpoints.checkpoint import Checkpoint
from hotstart.engines.recipe import EngineRecipe

ENGINE_JSON = "engine.json"
TOKENIZER_JSON = "tokenizer.json"


def make_engine_json(checkpoint: Checkpoint, recipe: EngineRecipe) -> str:
    """The text. ``context_length`` is the engine's own where it is built for fewer tokens than the network."""
    runtime, context = recipe.toolchain.runtime, checkpoint.facts.context_length
    built_for = context if runtime == "ctranslate2" else recipe.limits.sequence_tokens
    value = {
        "runtime": runtime,
        "architecture": checkpoint.facts.architecture,
        "context_length": min(context, built_for) if context else built_for,  # 0: the config does not say
        "eos_ids": list(checkpoint.eos_ids),
        "bos_id": checkpoint.bos_id,
        "vocab_size": checkpoint.facts.vocab,
        "quantization": recipe.quantization,
    }
    return json.dumps(value, indent=2, sort_keys=True) + "\n"
