"""NaN and infinity in weights as the files have them: found by their patterns, without decoding. Pure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hotstart.engines.errors import Reason, Terminal

#: Type as safetensors names it -> patterns of that width, and those whose exponent is all ones: NaN or infinite (of
#: F8_E4M3, which has no infinity, the one that is NaN). Without the sign bit, all from there on are not finite.
_PATTERNS: dict[str, tuple[type[np.unsignedinteger], int]] = {
    "F64": (np.uint64, 0x7FF0 << 48),
    "F32": (np.uint32, 0x7F80 << 16),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
    "F8_E4M3": (np.uint8, 0x7F),
}


def has_patterns(stored: str) -> bool:
    """Whether a type can hold NaN or infinity at all: whole numbers cannot."""
    return stored in _PATTERNS


def pattern_bytes(stored: str) -> int:
    """Bytes of one number."""
    return np.dtype(_PATTERNS[stored][0]).itemsize


def all_finite(values: npt.NDArray[np.unsignedinteger], stored: str) -> bool:
    """Whether no pattern is NaN or infinite. Shifting the sign out makes it one pass without a copy of masks."""
    kind, least = _PATTERNS[stored]
    return not values.size or int((values << kind(1)).max()) < 2 * least


def is_finite(data: bytes | memoryview, stored: str) -> bool:
    """The same of bytes, as many as make whole numbers."""
    return all_finite(np.frombuffer(data, _PATTERNS[stored][0]), stored)


def make_not_finite(name: str) -> Terminal:
    """The error for a tensor that holds NaN or Inf."""
    return Terminal(
        Reason.CHECKPOINT_CORRUPT,
        f"The tensor {name} holds NaN or Inf: the training run diverged or the file is damaged; "
        "use another state of the checkpoint.",
    )
