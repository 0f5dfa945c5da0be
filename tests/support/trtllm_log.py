"""What ``trtllm-build`` prints for one rank, after public logs of it."""

from __future__ import annotations


def rank_lines(rank: int) -> tuple[str, ...]:
    """The lines in their order."""
    ours, theirs = "[11/24/2026-15:00:00] [TRT-LLM] [I]", "[11/24/2026-15:00:00] [TRT] [I]"
    return (
        f"{ours} Set dtype to float16.",
        f"{theirs} [MemUsageChange] Init CUDA: CPU +13, GPU +0, now: CPU 125, GPU 256 (MiB)",
        f"{theirs} [MemUsageChange] Init builder kernel library: CPU +1799, GPU +312, now: CPU 2060, GPU 568 (MiB)",
        f"{ours} Total time of constructing network from module object 8.19213318824768 seconds",
        f"{ours} Total optimization profiles added: 1",
        f"{ours} Total time to initialize the weights in network Unnamed Network 0: 00:00:00",
        f"{ours} Build TensorRT engine Unnamed Network 0",
        "[11/24/2026-15:00:00] [TRT] [W] Unused Input: position_ids",
        f"{theirs} Global timing cache in use. Profiling results in this builder pass will be stored.",
        f"{theirs} [GraphReduction] The approximate region cut reduction algorithm is called.",
        f"{theirs} Detected 13 inputs and 1 output network tensors.",
        f"{theirs} Total Weights Memory: 14483464192 bytes",
        f"{theirs} Engine generation completed in 16.3055 seconds.",
        f"{theirs} [MemUsageStats] Peak memory usage of TRT CPU/GPU memory allocators: CPU 8 MiB, GPU 19386 MiB",
        f"{ours} Total time of building Unnamed Network 0: 00:00:22",
        f"{ours} Timing cache serialized to timing.cache.new",
        f"{ours} Build phase peak memory: 40294.03 MB, children: 16.96 MB",
        f"{ours} Serializing engine to /scratch/engine/rank{rank}.engine...",
        f"{ours} Engine serialized. Total time: 00:00:19",
    )
