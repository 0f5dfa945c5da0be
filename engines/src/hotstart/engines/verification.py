"""What verification and calibration leave in an engine's manifest, and what they decide. Pure.

The builder compares the engine with its checkpoint (``Verification``) and measures it (``Profile``); the operator shows
both in the Engine's status and plans with the profile. Standard library only, so that the operator may import it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Verification:
    """How far the engine agrees with its checkpoint.

    ``compared`` are the positions whose margin (the reference's top-1 logit less its top-2) exceeds ``epsilon``: there
    the engine's top-1 token must be the reference's. ``worst_margin`` is the largest margin at which they still
    differed (0.0 where they never did). ``reference`` says what computed the expectation, such as ``numpy``.
    """

    positions: int
    compared: int
    agreed: int
    agreed_of_all: int
    epsilon: float
    worst_margin: float
    reference: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Verification:
        """The inverse of ``to_json``. Raises TypeError where a field is missing or unknown."""
        return cls(**value)
