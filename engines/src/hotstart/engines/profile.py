"""The profile of an engine: what calibration measured, and what it says about an SLO. Pure, standard library only.

All latencies are of whole completions through the completion model, in milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class LonePoint:
    """One request alone: its prompt's length (tokens), tokens generated, median latency (ms)."""

    input_tokens: int
    new_tokens: int
    latency_ms: float


@dataclass(frozen=True)
class LoadPoint:
    """So many requests at once, each of the profile's lengths: P95 (ms), tokens/s that all generate together."""

    concurrency: int
    p95_ms: float
    decode_tokens_per_second: float


@dataclass(frozen=True)
class Profile:
    """What one replica does. It holds for the ``cpus`` (0: GPU) and thread counts that it was measured with."""

    input_tokens: int
    new_tokens: int
    prefill_tokens_per_second: float
    lone: tuple[LonePoint, ...]
    load: tuple[LoadPoint, ...]
    noise: float  # relative spread of repeated sweeps; above ``tolerance`` the profile calls itself noisy
    tolerance: float
    seconds: float
    cpus: float = 0.0
    inter_threads: int = 1
    intra_threads: int = 1

    @property
    def noisy(self) -> bool:
        """Whether repeated sweeps agreed too badly for the figures to be trusted."""
        return self.noise > self.tolerance

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Profile:
        """The inverse of ``to_json``. Raises TypeError or KeyError where a field is missing or unknown."""
        rest = {name: part for name, part in value.items() if name not in ("lone", "load")}
        lone = tuple(LonePoint(**point) for point in value["lone"])
        return cls(lone=lone, load=tuple(LoadPoint(**point) for point in value["load"]), **rest)
