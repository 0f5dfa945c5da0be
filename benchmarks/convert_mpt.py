"""MPT -> TensorRT-LLM at replit-code-v1_5-3b's full size (6.64 GB, random bfloat16 -> float16): memory and speed.

Each conversion runs in a process of its own, whose anonymous memory (``RssAnon``: what is not the page cache of a
mapped file) is looked at every 10 ms. Before and after it the same file is plainly copied on the same disk; both end
with fsync, and both find the file outside the page cache. In the end the same weights are converted from a PyTorch
file, the form in which replit-code is published. Goals: 1.5 GB, and 0.5 of the copy's speed.

    python benchmarks/convert_mpt.py [--rounds N] [--layers N] [--stored float16] [--dtype bfloat16] [--biases]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import record
from apart import run_apart
from hotstart.engines.checkpoints.checkpoint import Checkpoint, count_parameters, expected_shapes
from hotstart.engines.checkpoints.mpt_config import make_mpt_facts
from hotstart.engines.checkpoints.safetensors_folder import SafetensorsFolder
from hotstart.engines.recipe import EngineRecipe, Toolchain
from hotstart.engines.runtimes.tensorrt_llm.mpt_convert import convert_mpt
from hotstart.engines.runtimes.tensorrt_llm.safetensors_writer import Entry, SafetensorsWriter

from tests.support.tiny_checkpoint import make_tokenizer_json
from tests.support.tiny_mpt import REPLIT, TinyMptShape, make_mpt_config

SAFETENSORS_FILE, TORCH_FILE = "model.safetensors", "pytorch_model.bin"
BUILD = Path(__file__).resolve().parent.parent / "build"
GOAL_MB = 1500
GOAL_RATIO = 0.5
BLOCK = 1 << 22  # values written at a time
#: Patterns of numbers from 2^-14 to 1/8, which both 16-bit types hold.
RANGE = {"float16": (0x0400, 0x3000), "bfloat16": (0x3880, 0x3E00)}


@dataclass(frozen=True)
class Run:
    """One conversion: ``seconds`` of the conversion itself, ``peak_mb`` of the whole process."""

    seconds: float
    peak_mb: float


def write_checkpoint(folder: Path, shape: TinyMptShape, stored: str) -> int:
    """A checkpoint of random weights in ``stored``; returns the bytes of its weights."""
    folder.mkdir()
    config = make_mpt_config(shape, stored)
    entries = [
        Entry(name, {"float16": "F16", "bfloat16": "BF16"}[stored], size)
        for name, size in expected_shapes(make_mpt_facts(config)).items()
    ]
    random = np.random.default_rng(0)
    with SafetensorsWriter(folder / SAFETENSORS_FILE, entries) as file:
        for entry in entries:
            for offset in range(0, entry.size // 2, BLOCK):
                values = random.integers(*RANGE[stored], min(BLOCK, entry.size // 2 - offset), dtype=np.uint16)
                file.write(entry.name, values | (values << np.uint16(15)), offset=2 * offset)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(make_tokenizer_json())
    return file.size


def save_as_torch(folder: Path) -> None:
    """The folder's weights as pytorch_model.bin, in place of its safetensors; mapped, so that few are in memory."""
    import torch

    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    checkpoint = SafetensorsFolder(folder)
    state = {}
    for name in checkpoint.shapes():
        found = checkpoint.stored(name)
        tensor = torch.from_numpy(found.values.view(np.int16))
        state[name] = tensor.view(torch.bfloat16 if found.dtype == "BF16" else torch.float16)
    torch.save(state, folder / TORCH_FILE)
    with (folder / TORCH_FILE).open("rb+") as saved:
        os.fsync(saved.fileno())
    (folder / SAFETENSORS_FILE).unlink()


def drop_from_cache(path: Path) -> None:
    """The file's pages leave the page cache, so that whoever reads it next reads the disk."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def time_copy(source: Path, target: Path) -> float:
    """Seconds to copy the file and sync it."""
    drop_from_cache(source)
    began = time.perf_counter()
    shutil.copyfile(source, target)
    with target.open("rb+") as copied:
        os.fsync(copied.fileno())
    seconds = time.perf_counter() - began
    target.unlink()
    return seconds


def time_conversion(source: Path, target: Path, dtype: str, ranks: int) -> Run:
    """One conversion in a process of its own; its output is removed.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    drop_from_cache(next(path for path in source.iterdir() if path.name in (SAFETENSORS_FILE, TORCH_FILE)))
    found, peak = run_apart(__file__, str(source), str(target), dtype, str(ranks))
    shutil.rmtree(target)
    return Run(found["seconds"], peak)


def convert_here(source: Path, target: Path, dtype: str, ranks: int) -> float:
    """The child: converts, and returns the seconds that it took."""
    recipe = EngineRecipe(Toolchain("hotstart-mpt", 1, "tensorrt_llm", "1.2.1"), dtype, "none", ranks)
    checkpoint: Checkpoint = SafetensorsFolder(source)
    if (source / TORCH_FILE).exists():
        from hotstart.engines.checkpoints.torch_folder import TorchFolder

        checkpoint = TorchFolder(source, (TORCH_FILE,))
    began = time.perf_counter()
    convert_mpt(checkpoint, recipe, target, lambda share: None)
    return time.perf_counter() - began


@contextmanager
def scratch(needed: int) -> Iterator[Path]:
    """A folder on the repository's disk, removed in the end.

    Raises:
        SystemExit: the disk has too little room.
    """
    BUILD.mkdir(exist_ok=True)
    free = shutil.disk_usage(BUILD).free
    if free < needed:
        sys.exit(f"convert_mpt: {needed / 1e9:.1f} GB are needed in {BUILD}, {free / 1e9:.1f} GB are free")
    with tempfile.TemporaryDirectory(prefix="convert-", dir=BUILD) as folder:
        yield Path(folder)


def measure(rounds: int, shape: TinyMptShape, stored: str, dtype: str) -> None:
    """Runs all, and records the figures."""
    weights = count_parameters(make_mpt_facts(make_mpt_config(shape)))
    with scratch(5 * weights) as folder:  # source, and a copy or a conversion, in 16 bits
        source = folder / "mpt"
        size = write_checkpoint(source, shape, stored)
        copies, runs, from_torch = [], [], {}
        for _ in range(rounds):
            copies.append(time_copy(source / SAFETENSORS_FILE, folder / "copy"))
            runs.append(time_conversion(source, folder / "converted", dtype, 1))
        copies.append(time_copy(source / SAFETENSORS_FILE, folder / "copy"))
        split = time_conversion(source, folder / "converted", dtype, 4)
        if find_spec("torch"):
            save_as_torch(source)
            pickled = time_conversion(source, folder / "converted", dtype, 1)
            from_torch = {
                "convert_seconds_from_torch": round(pickled.seconds, 2),
                "peak_anonymous_mb_from_torch": round(pickled.peak_mb, 1),
            }
    copied, converted = record.median(copies), record.median([run.seconds for run in runs])
    ratio = round(copied / converted, 3)
    peak = max(run.peak_mb for run in (*runs, split))
    record.write(
        "convert_mpt",
        {
            "layers": shape.layers,
            "parameters": weights,
            "types": f"{stored} -> {dtype}",
            "checkpoint_gb": round(size / 1e9, 3),
            "rounds": rounds,
            "copy_seconds": copied,
            "copy_seconds_all": [round(seconds, 2) for seconds in copies],
            "convert_seconds": converted,
            "convert_seconds_all": [round(run.seconds, 2) for run in runs],
            "convert_seconds_four_ranks": round(split.seconds, 2),
            "copy_mb_per_second": round(size / 1e6 / copied, 1),
            "convert_mb_per_second": round(size / 1e6 / converted, 1),
            "speed_to_copy": ratio,
            "peak_anonymous_mb": round(peak, 1),
            **from_torch,
        },
        {
            "speed_to_copy": record.at_least(GOAL_RATIO),
            **{figure: record.at_most(GOAL_MB) for figure in ("peak_anonymous_mb", *from_torch) if "peak" in figure},
        },
    )


def main() -> int:
    """0; a conversion that fails raises."""
    if sys.argv[1:2] == ["--child"]:
        source, target, dtype, ranks = sys.argv[2:]
        print(json.dumps({"seconds": convert_here(Path(source), Path(target), dtype, int(ranks))}))
        return 0
    parser = argparse.ArgumentParser(description="Memory and speed of the MPT converter at replit-code's size")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=REPLIT.layers)
    parser.add_argument("--biases", action="store_true", help="a network with biases, which are folded")
    parser.add_argument("--stored", choices=RANGE, default="bfloat16")
    parser.add_argument("--dtype", choices=RANGE, default="float16")
    options = parser.parse_args()
    shape = replace(REPLIT, layers=options.layers, bias=options.biases)
    measure(options.rounds, shape, options.stored, options.dtype)
    return 0


if __name__ == "__main__":
    sys.exit(main())
