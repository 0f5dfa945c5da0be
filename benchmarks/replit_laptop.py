"""replit-code-v1_5-3b's shape on the ctranslate2 runtime: random bfloat16 weights -> int8 engine, held against numpy.

Conversion, comparison and generation each run in a process of their own. The comparison asks verification's questions:
the correlation of all logits, and how often the top tokens are the same where the reference's margin is clear (above
half a standard deviation of a position's logits). Random weights make poor margins and worse rounding than trained.

    python benchmarks/replit_laptop.py [--layers N]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ctranslate2
import numpy as np
import record
from apart import peak_megabytes, run_apart
from convert_mpt import BUILD, write_checkpoint
from hotstart.engines.checkpoints.checkpoint import count_parameters
from hotstart.engines.checkpoints.safetensors_folder import SafetensorsFolder
from hotstart.engines.checkpoints.tokenizer import parse_tokenizer
from hotstart.engines.recipe import EngineRecipe, make_toolchain
from hotstart.engines.reference.opening import make_reference
from hotstart.engines.runtimes.ctranslate2 import CTranslate2
from hotstart.engines.verify.samples import load_samples, make_questions

from tests.support.tiny_mpt import REPLIT

CLEAR = 0.5  # standard deviations of a position's logits
LEAST_CORRELATION = 0.99  # of all logits; int8 of random weights had 0.9987
NEW_TOKENS = 32


def convert(folder: Path) -> dict[str, Any]:
    """The child that converts."""
    checkpoint, engine = SafetensorsFolder(folder / "mpt"), folder / "engine"
    engine.mkdir()
    recipe = EngineRecipe(make_toolchain("ctranslate2", "hotstart-mpt"), "float32", "int8")
    began = time.perf_counter()
    CTranslate2().convert(checkpoint, recipe, engine, lambda share: None)
    size = sum(file.stat().st_size for file in engine.iterdir())
    return {
        "parameters": count_parameters(checkpoint.facts),
        "convert_seconds": round(time.perf_counter() - began, 1),
        "engine_gb": round(size / 1e9, 3),
    }


def compare(folder: Path) -> dict[str, Any]:
    """The child that asks reference and engine the same."""
    checkpoint = SafetensorsFolder(folder / "mpt")
    tokenizer = parse_tokenizer(checkpoint.tokenizer_json)
    questions = make_questions(load_samples(), tokenizer, checkpoint.bos_id, checkpoint.facts.context_length)
    began = time.perf_counter()
    texts, positions = [q.ids for q in questions], [q.positions for q in questions]
    expected = np.concatenate(make_reference(checkpoint).logits_of_all(texts, positions))
    reference_seconds = time.perf_counter() - began
    generator = ctranslate2.Generator(str(folder / "engine"), device="cpu")
    began = time.perf_counter()
    rows = [np.asarray(generator.forward_batch([list(q.ids)]))[0][list(q.positions)] for q in questions]
    forward_seconds = time.perf_counter() - began
    found = np.concatenate(rows)
    second, first = np.sort(expected, axis=-1)[:, -2:].T
    same, clear = found.argmax(axis=-1) == expected.argmax(axis=-1), first - second > CLEAR * expected.std(axis=-1)
    return {
        "reference_seconds": round(reference_seconds, 1),
        "engine_tokens_per_second_forward": round(sum(map(len, texts)) / forward_seconds, 1),
        "positions": len(same),
        "correlation": round(float(np.corrcoef(found.ravel(), expected.ravel())[0, 1]), 5),
        "same_top": round(float(same.mean()), 3),
        "clear_positions": int(clear.sum()),
        "same_top_where_clear": round(float(same[clear].mean()), 3) if clear.any() else None,
    }


def generate(folder: Path) -> dict[str, Any]:
    """The child that completes one prompt as a laptop would."""
    began = time.perf_counter()
    generator = ctranslate2.Generator(str(folder / "engine"), device="cpu")
    loaded = time.perf_counter()
    names = json.loads((folder / "engine" / "vocabulary.json").read_text())
    prompt = [names[token] for token in range(4, 100)]
    arguments = {"sampling_topk": 1, "include_prompt_in_result": False}
    generator.generate_batch([prompt], max_length=1, min_length=1, **arguments)
    first = time.perf_counter()
    generator.generate_batch([prompt], max_length=1, min_length=1, **arguments)
    prefilled = time.perf_counter()
    generator.generate_batch([prompt], max_length=NEW_TOKENS, min_length=NEW_TOKENS, **arguments)
    took = time.perf_counter() - prefilled - (prefilled - first)
    return {
        "load_seconds": round(loaded - began, 1),
        "prefill_96_tokens_seconds": round(prefilled - first, 2),
        "decode_tokens_per_second": round((NEW_TOKENS - 1) / took, 2),
    }


STEPS = {"convert": convert, "compare": compare, "generate": generate}


def main() -> int:
    """0; a step that fails raises."""
    if sys.argv[1:2] == ["--child"]:
        step, folder = sys.argv[2:]
        print(json.dumps(STEPS[step](Path(folder)) | {f"{step}_peak_rss_mb": peak_megabytes()}))
        return 0
    parser = argparse.ArgumentParser(description="MPT of replit's size on CTranslate2")
    parser.add_argument("--layers", type=int, default=REPLIT.layers)
    layers = parser.parse_args().layers
    BUILD.mkdir(exist_ok=True)
    figures: dict[str, Any] = {"layers": layers}
    with tempfile.TemporaryDirectory(prefix="replit-", dir=BUILD) as parent:
        write_checkpoint(Path(parent) / "mpt", replace(REPLIT, layers=layers), "bfloat16")
        for step in STEPS:
            found, anonymous = run_apart(__file__, step, parent)
            figures |= found | {f"{step}_peak_anonymous_mb": anonymous}
    check_agreement(figures)
    record.write("replit_laptop", figures)
    return 0


def check_agreement(figures: Mapping[str, Any]) -> None:
    """Raises SystemExit where the engine computes something else than the checkpoint."""
    if figures["correlation"] < LEAST_CORRELATION:
        sys.exit(f"replit_laptop: the engine's logits are not the checkpoint's: correlation {figures['correlation']}")
    if figures["same_top_where_clear"] not in (None, 1.0):
        sys.exit(f"replit_laptop: another top token where the margin is clear: {figures['same_top_where_clear']}")


if __name__ == "__main__":
    sys.exit(main())
