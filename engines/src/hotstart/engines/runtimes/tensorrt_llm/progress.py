"""How far ``trtllm-build`` is, from the lines that it prints. Pure.

The lines, in their order for one rank; each is in public logs of versions 0.12 to 1.0, and none is promised to stay:

    [TRT-LLM] [I] Set ... to ...                                      reading options          (before the first rank)
    [TRT] [I] [MemUsageChange] Init CUDA: ...
    [TRT-LLM] [I] Total time of constructing network from module object 8.2 seconds
    [TRT-LLM] [I] Total optimization profiles added: 1
    [TRT-LLM] [I] Total time to initialize the weights in network Unnamed Network 0: 00:00:00
    [TRT-LLM] [I] Build TensorRT engine Unnamed Network 0
    [TRT] [I] Global timing cache in use. Profiling results in this builder pass will be stored.
    [TRT] [I] [GraphReduction] The approximate region cut reduction algorithm is called.
    [TRT] [I] Detected 13 inputs and 1 output network tensors.
    [TRT] [I] Engine generation completed in 16.3055 seconds.
    [TRT] [I] [MemUsageStats] Peak memory usage of TRT CPU/GPU memory allocators: CPU 8 MiB, GPU 19386 MiB
    [TRT-LLM] [I] Total time of building Unnamed Network 0: 00:00:22
    [TRT-LLM] [I] Timing cache serialized to model.cache                                       (rank 0 only)
    [TRT-LLM] [I] Build phase peak memory: 40294.03 MB, children: 16.96 MB
    [TRT-LLM] [I] Serializing engine to .../rank0.engine...
    [TRT-LLM] [I] Engine serialized. Total time: 00:00:19
    [TRT-LLM] [I] Total time of building all engines: 00:00:47

The shares of a rank's time are a guess from three such logs. A line that is not known changes nothing, ranks that are
built at once may mix their lines, and a share never falls.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

#: Share of a rank's time that is over when the line appears.
MILESTONES: tuple[tuple[str, float], ...] = (
    ("Init CUDA:", 0.02),
    ("Init builder kernel library", 0.05),
    ("Total time of constructing network", 0.15),
    ("Total optimization profiles added", 0.17),
    ("Total time to initialize the weights", 0.20),
    ("Build TensorRT engine", 0.20),
    ("Global timing cache in use", 0.22),
    ("[GraphReduction]", 0.35),
    ("Detected ", 0.40),
    ("Engine generation completed", 0.75),
    ("Total time of building Unnamed", 0.82),
    ("Build phase peak memory", 0.84),
    ("Serializing engine to", 0.85),
)
RANK_DONE = "Engine serialized. Total time"
ALL_DONE = "Total time of building all engines"
#: A bar of tqdm's, which is drawn anew in the same line for every step.
BAR = re.compile(r"(\d{1,3})%\|.*\|")
_HOST_PEAK = re.compile(r"Build phase peak memory: ([\d.]+) MB, children: ([\d.]+) MB")
_GPU_PEAK = re.compile(r"memory allocators: CPU (\d+) MiB, GPU (\d+) MiB")
MB = 1_000_000
MIB = 1024**2


@dataclass(frozen=True)
class BuildProgress:
    """``furthest``: how many ranks have said each milestone. Peaks in bytes, of the largest rank, 0 while unknown."""

    ranks: int
    furthest: tuple[int, ...] = field(default=(0,) * len(MILESTONES))
    ranks_done: int = 0
    done: bool = False
    host_peak: int = 0
    gpu_peak: int = 0

    @property
    def share(self) -> float:
        """How much of the build is done, 0 to 1; 1 only after the tool's last word."""
        if self.done:
            return 1.0
        at_rank = [
            max(
                (share for (_, share), count in zip(MILESTONES, self.furthest, strict=True) if count > rank),
                default=0.0,
            )
            for rank in range(self.ranks)
        ]
        of_ranks = [1.0 if rank < self.ranks_done else at for rank, at in enumerate(at_rank)]
        return min(sum(of_ranks) / self.ranks, 0.99)


def advance(progress: BuildProgress, line: str) -> BuildProgress:
    """The progress after one more line of the tool's."""
    if ALL_DONE in line:
        return replace(progress, done=True)
    if RANK_DONE in line:
        return replace(progress, ranks_done=min(progress.ranks_done + 1, progress.ranks))
    progress = _note_peaks(progress, line)
    for number, (words, _) in enumerate(MILESTONES):
        if words in line:
            seen = (*progress.furthest[:number], progress.furthest[number] + 1, *progress.furthest[number + 1 :])
            return replace(progress, furthest=seen)
    return progress


class BarProgress:
    """How far a tool is that only draws bars, as tqdm does (`` 40%|####      | 4/10``): the furthest of them.

    A bar that begins anew, for the next rank or the next step, does not take it back.
    """

    def __init__(self, on_share: Callable[[float], None]) -> None:
        self._on_share = on_share
        self._furthest = 0.0

    def __call__(self, line: str) -> None:
        """Takes a line."""
        found = BAR.search(line)
        if found is not None and (share := min(int(found[1]), 100) / 100) > self._furthest:
            self._furthest = share
            self._on_share(share)


def _note_peaks(progress: BuildProgress, line: str) -> BuildProgress:
    if host := _HOST_PEAK.search(line):
        peak = int((float(host[1]) + float(host[2])) * MB)
        return replace(progress, host_peak=max(progress.host_peak, peak))
    if gpu := _GPU_PEAK.search(line):
        return replace(progress, gpu_peak=max(progress.gpu_peak, int(gpu[2]) * MIB))
    return progress
