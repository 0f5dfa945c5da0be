"""Exact quantiles. A run keeps every sample, so nothing is interpolated and nothing falls into a bucket.

Merging several processes means putting their samples together: quantiles of quantiles would be wrong.
"""

import math
from collections.abc import Sequence


def quantile(ordered: Sequence[float], fraction: float) -> float | None:
    """Return the nearest-rank quantile of an ascending sequence, or None when it is empty.

    Nearest rank: the smallest sample such that at least `fraction` of all samples are no greater than it, that is the
    sample at rank ceil(fraction x n), counted from 1 (Hyndman and Fan 1996, type 1). It is always a value that was
    measured, and the p99 of fewer than 100 samples is their maximum.
    Raises ValueError when fraction is outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"a quantile's fraction lies in (0, 1], not {fraction}")
    if not ordered:
        return None
    # 0.95 x 20 is 19.000000000000004 in some orders of evaluation: rank 19 is meant, not 20.
    rank = math.ceil(round(fraction * len(ordered), 9))
    return ordered[max(rank, 1) - 1]
