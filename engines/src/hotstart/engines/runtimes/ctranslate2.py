"""The ctranslate2 runtime: a checkpoint -> a CTranslate2 model directory, without torch.

The networks themselves are in ``ctranslate2_llama.py`` and ``ctranslate2_mpt.py``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import ctranslate2
from hotstart.engines.architectures import CTRANSLATE2, require_architecture
from hotstart.engines.checkpoints.checkpoint import Checkpoint, Facts, llama_facts
from hotstart.engines.checkpoints.mpt_config import MptFacts
from hotstart.engines.checkpoints.tokenizer import make_vocabulary, parse_tokenizer
from hotstart.engines.errors import Reason, Terminal
from hotstart.engines.recipe import EngineRecipe, Toolchain, make_toolchain
from hotstart.engines.runtimes.ctranslate2_llama import fill_llama_spec, make_llama_spec
from hotstart.engines.runtimes.ctranslate2_mpt import fill_mpt_spec, make_mpt_spec
from hotstart.engines.runtimes.ctranslate2_scorer import CTranslate2Scorer
from hotstart.engines.runtimes.ctranslate2_weights import WeightWriter
from hotstart.engines.runtimes.engine_json import ENGINE_JSON, TOKENIZER_JSON, make_engine_json
from hotstart.engines.runtimes.machine import check_cpu
from hotstart.engines.runtimes.runtime import Progress

QUANTIZATIONS = ("int8", "int8_float32", "float32")


class CTranslate2:
    """Implements ``Runtime``."""

    def toolchain(self, converter: str) -> Toolchain:
        return replace(make_toolchain(CTRANSLATE2, converter), runtime_version=ctranslate2.__version__)

    @property
    def compiles(self) -> bool:
        return False

    def check_platform(self, recipe: EngineRecipe) -> None:
        check_cpu(recipe)

    def convert(
        self, checkpoint: Checkpoint, recipe: EngineRecipe, folder: Path, progress: Progress, source: Path | None = None
    ) -> None:
        check_recipe(recipe)
        check_converter(checkpoint.facts, recipe)
        weights = WeightWriter(checkpoint, recipe.quantization != "float32", progress)
        spec = make_filled_spec(checkpoint, weights)
        tokenizer = parse_tokenizer(checkpoint.tokenizer_json)
        vocabulary = make_vocabulary(tokenizer, checkpoint.facts.vocab)
        spec.register_vocabulary(vocabulary)
        spec.config.bos_token = vocabulary[checkpoint.eos_ids[0] if checkpoint.bos_id is None else checkpoint.bos_id]
        spec.config.eos_token = vocabulary[checkpoint.eos_ids[0]]
        spec.config.unk_token = ""
        spec.validate()
        weights.alias_duplicates(spec)
        spec.save(str(folder))
        (folder / TOKENIZER_JSON).write_bytes(checkpoint.tokenizer_json)
        (folder / ENGINE_JSON).write_text(make_engine_json(checkpoint, recipe))

    def build(self, converted: Path, recipe: EngineRecipe, engine: Path, progress: Progress, work: Path) -> None:
        for file in sorted(converted.iterdir()):
            file.rename(engine / file.name)

    def open_scorer(self, folder: Path, recipe: EngineRecipe) -> CTranslate2Scorer:
        return CTranslate2Scorer(folder)


def check_recipe(recipe: EngineRecipe) -> None:
    """Raises Terminal (UnsupportedRecipe) for what this runtime does not build."""
    if recipe.quantization not in QUANTIZATIONS or recipe.dtype != "float32" or recipe.tensor_parallel != 1:
        raise Terminal(
            Reason.UNSUPPORTED_RECIPE,
            f"ctranslate2 takes quantization {', '.join(QUANTIZATIONS)}, dtype float32 and tensorParallel 1; "
            f"the recipe asks for {recipe.quantization}, {recipe.dtype} and {recipe.tensor_parallel}.",
        )


def check_converter(facts: Facts, recipe: EngineRecipe) -> None:
    """Raises Terminal (UnsupportedRecipe) where the recipe's converter, which is in the key, is for another network."""
    wanted = require_architecture(facts.architecture).converters.get(CTRANSLATE2, "none")
    if recipe.toolchain.converter != wanted:
        raise Terminal(
            Reason.UNSUPPORTED_RECIPE,
            f"The recipe asks for the converter {recipe.toolchain.converter}, {facts.architecture} takes {wanted}: "
            "set checkpoint.revision to have the checkpoint inspected again.",
        )


def make_filled_spec(checkpoint: Checkpoint, weights: WeightWriter) -> Any:
    """The network's specification with all its weights.

    Raises:
        Terminal: UnsupportedArchitecture, CTranslate2 cannot compute it; CheckpointCorrupt, a weight is NaN or Inf.
    """
    facts = checkpoint.facts
    if isinstance(facts, MptFacts):
        spec = make_mpt_spec(facts)
        fill_mpt_spec(spec, facts, weights)
    else:
        known = llama_facts(checkpoint)
        spec = make_llama_spec(known)
        fill_llama_spec(spec, known, weights)
    return spec
