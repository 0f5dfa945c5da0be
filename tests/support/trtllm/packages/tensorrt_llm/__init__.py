"""Stands in for TensorRT-LLM's Python package: the few names that scoring uses, and numpy in the GPU's place."""

from dataclasses import dataclass


@dataclass
class SamplingParams:
    """The parameters that are given, and no others."""

    max_tokens: int
    top_k: int
    end_id: int
    pad_id: int
    detokenize: bool
