"""An MPT checkpoint -> a TensorRT-LLM checkpoint: config.json and rank{N}.safetensors, written block by block.

Sizes are known from the config alone, so every file is opened with its final size and each block of a source tensor is
read, rounded and written to its place, for all ranks while it is in the page cache. Memory holds a few blocks, and with
weight-only quantization one layer's weight. The folder appears under its name only when all of it is on the disk.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from hotstart.engines.checkpoints.checkpoint import Checkpoint, check_shapes, mpt_facts, read_stored
from hotstart.engines.checkpoints.finite import all_finite, make_not_finite
from hotstart.engines.checkpoints.mpt_config import MptFacts
from hotstart.engines.checkpoints.source import check_room, make_disk_full
from hotstart.engines.errors import Reason, Terminal
from hotstart.engines.recipe import EngineRecipe
from hotstart.engines.runtimes.runtime import Progress
from hotstart.engines.runtimes.tensorrt_llm.checkpoint_config import check_mpt_recipe, make_checkpoint_config
from hotstart.engines.runtimes.tensorrt_llm.layout import Piece, Target, make_layout
from hotstart.engines.runtimes.tensorrt_llm.quantize import Quantize, load_quantize, quantized_entries, scale_name
from hotstart.engines.runtimes.tensorrt_llm.safetensors_writer import Entry, SafetensorsWriter
from hotstart.engines.runtimes.tensorrt_llm.sixteen_bits import STORED, Bits, to_bits, to_float32

BLOCK = 1 << 20  # values that one thread converts at a time
THREADS = 2


def convert_mpt(
    checkpoint: Checkpoint,
    recipe: EngineRecipe,
    folder: Path,
    progress: Progress,
    *,
    quantize: Quantize | None = None,
) -> None:
    """Writes the TensorRT-LLM checkpoint to ``folder``, which must be empty or not there. Blocking.

    ``quantize`` stands in for TensorRT-LLM's operation; without it, it is loaded where the recipe needs it.

    Raises:
        Terminal: UnsupportedArchitecture or UnsupportedRecipe; CheckpointCorrupt, a tensor is missing, of another
            shape, or holds NaN or Inf; InvalidSpec, the folder holds files.
        Retryable: DiskFull, with the bytes that are needed.
    """
    facts = mpt_facts(checkpoint)
    check_mpt_recipe(facts, recipe)
    _check_empty(folder)
    check_shapes(checkpoint)
    operation = quantize or load_quantize(recipe.quantization)
    layouts = [make_layout(facts, recipe.tensor_parallel, rank) for rank in range(recipe.tensor_parallel)]
    writers = [list(rank_entries(layout, recipe)) for layout in layouts]
    needed = sum(entry.size for entries in writers for entry in entries)
    partial_folder = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial_folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    check_room(folder.parent, needed)
    partial_folder.mkdir(parents=True)
    try:
        with ExitStack() as stack:
            files = [
                stack.enter_context(SafetensorsWriter(partial_folder / f"rank{rank}.safetensors", entries))
                for rank, entries in enumerate(writers)
            ]
            _Conversion(checkpoint, recipe.dtype, files, operation, progress).run(layouts)
        _write_config(partial_folder, facts, recipe)
        partial_folder.rename(folder)
        _sync_folder(folder.parent)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise make_disk_full(folder.parent, needed) from error
        raise
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)


def rank_entries(layout: Sequence[Target], recipe: EngineRecipe) -> Iterator[Entry]:
    """What stands in the file of a rank. Pure."""
    for target in layout:
        if target.linear and recipe.quantization != "none":
            yield from quantized_entries(target.name, target.shape, recipe.dtype, recipe.quantization)
        else:
            yield Entry(target.name, STORED[recipe.dtype], target.shape)


class _Conversion:
    """One run over all tensors; ranks side by side, so that each tensor is read from the disk once."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: str,
        files: Sequence[SafetensorsWriter],
        quantize: Quantize | None,
        progress: Progress,
    ) -> None:
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._files = files
        self._quantize = quantize
        self._progress = progress

    def run(self, layouts: Sequence[Sequence[Target]]) -> None:
        total = sum(prod(target.shape) for layout in layouts for target in layout)
        done = 0
        with ThreadPoolExecutor(THREADS, "convert") as pool:
            for targets in zip(*layouts, strict=True):
                for file, target in zip(self._files, targets, strict=True):
                    self._convert(pool, file, target)
                    done += prod(target.shape)
                self._progress(done / total)

    def _convert(self, pool: ThreadPoolExecutor, file: SafetensorsWriter, target: Target) -> None:
        if target.linear and self._quantize is not None:
            self._convert_quantized(pool, file, target, self._quantize)
            return
        _run_all(pool, self._blocks(target, lambda bits, offset: file.write(target.name, bits, 2 * offset)))

    def _convert_quantized(
        self, pool: ThreadPoolExecutor, file: SafetensorsWriter, target: Target, quantize: Quantize
    ) -> None:
        weight = np.empty(target.shape, np.uint16)
        flat = weight.reshape(-1)

        def keep(bits: Bits, offset: int) -> None:
            flat[offset : offset + bits.size] = bits.reshape(-1)

        _run_all(pool, self._blocks(target, keep))
        packed, scales = quantize(np.ascontiguousarray(weight.T), self._dtype)
        file.write(target.name, np.ascontiguousarray(packed))
        file.write(scale_name(target.name), np.ascontiguousarray(scales))

    def _blocks(self, target: Target, put: Callable[[Bits, int], None]) -> Iterator[Callable[[], None]]:
        """Jobs that give each block of the target, with its offset in values, to ``put``."""
        width = prod(target.shape[1:])
        above = 0
        for piece in target.pieces:
            read = self._reader(piece, width)
            rows = max(1, BLOCK // self._values_read(piece, width))
            for start in range(0, piece.count, rows):
                stop = min(start + rows, piece.count)
                yield partial(_convert_block, read, start, stop, put, (above + start) * width)
            above += piece.count

    def _values_read(self, piece: Piece, width: int) -> int:
        """How many values are read for one row of a piece: all of a matrix' row for one value of a product."""
        return width if piece.matrix is None else int(self._checkpoint.shapes()[piece.matrix][1])

    def _reader(self, piece: Piece, width: int) -> Callable[[int, int], Bits]:
        """Reads rows ``[start, stop)`` of a piece, rounded."""
        wanted = STORED[self._dtype]
        if piece.matrix is not None and piece.vector is not None:
            return self._folding_reader(piece, piece.matrix, piece.vector)
        if piece.source is None:
            return lambda start, stop: np.zeros((stop - start) * width, np.uint16)
        name, stored = piece.source, read_stored(self._checkpoint, piece.source)
        columns = slice(*piece.columns) if piece.columns else slice(None)

        def read(start: int, stop: int) -> Bits:
            rows = stored.values[piece.rows[0] + start : piece.rows[0] + stop]
            values = rows if rows.ndim == 1 else rows[:, columns]
            bits = to_bits(values, stored.dtype, wanted)
            if not all_finite(bits, wanted):
                raise _not_finite(name, to_float32(values, stored.dtype), self._dtype)
            return bits

        return read

    def _folding_reader(self, piece: Piece, matrix: str, vector: str) -> Callable[[int, int], Bits]:
        wanted = STORED[self._dtype]
        weight = read_stored(self._checkpoint, matrix)
        added = read_stored(self._checkpoint, vector)
        bias = None if piece.source is None else read_stored(self._checkpoint, piece.source)
        right = to_float32(added.values, added.dtype).astype(np.float64)

        def read(start: int, stop: int) -> Bits:
            rows = slice(piece.rows[0] + start, piece.rows[0] + stop)
            total = to_float32(weight.values[rows], weight.dtype) @ right
            if bias is not None:
                total = total + to_float32(bias.values[rows], bias.dtype)
            bits = to_bits(total, "F64", wanted)
            if not all_finite(bits, wanted):
                raise _not_finite(f"{matrix} x {vector}", total, self._dtype)
            return bits

        return read


def _convert_block(
    read: Callable[[int, int], Bits], start: int, stop: int, put: Callable[[Bits, int], None], offset: int
) -> None:
    put(read(start, stop), offset)


def _run_all(pool: ThreadPoolExecutor, jobs: Iterator[Callable[[], None]]) -> None:
    """Runs every job; the first failure ends the rest."""
    futures = [pool.submit(job) for job in jobs]
    try:
        for future in futures:
            future.result()
    finally:
        for future in futures:
            future.cancel()


def _not_finite(name: str, values: npt.NDArray[Any], dtype: str) -> Terminal:
    if not np.isfinite(values).all():
        return make_not_finite(name)
    largest = float(np.abs(values).max())
    return Terminal(
        Reason.UNSUPPORTED_RECIPE,
        f"The tensor {name} holds {largest:g}, which {dtype} cannot: set engine.dtype to "
        f"{'bfloat16' if dtype == 'float16' else 'float16, after scaling the checkpoint'}.",
    )


def _write_config(folder: Path, facts: MptFacts, recipe: EngineRecipe) -> None:
    with (folder / "config.json").open("w") as output:
        output.write(json.dumps(make_checkpoint_config(facts, recipe), indent=4) + "\n")
        output.flush()
        os.fsync(output.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_empty(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise Terminal(Reason.INVALID_SPEC, f"The folder {folder} holds files already: empty it, or name another.")
