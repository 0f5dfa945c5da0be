"""The next token drawn from an engine's logits, for requests that bring a seed of their own. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from hotstart.engines.triton.completion.options import RequestOptions


def choose_token(logits: npt.NDArray[np.float32], options: RequestOptions, chance: float) -> int:
    """The token that ``chance`` (at least 0, below 1) falls on: the same for the same arguments.

    Args:
        logits: one for each token of the vocabulary, before temperature.
        options: its temperature is above 0; ``top_k`` is applied before ``top_p``.
    """
    scaled = logits.astype(np.float64) / options.temperature
    weights = np.exp(scaled - scaled.max())
    ids: Any = np.argsort(-scaled, kind="stable")
    if options.top_k:
        ids = ids[: options.top_k]
    sums = np.cumsum(weights[ids])
    if options.top_p < 1.0:
        kept = int(np.searchsorted(sums, options.top_p * sums[-1])) + 1
        ids, sums = ids[:kept], sums[:kept]
    place = int(np.searchsorted(sums, chance * sums[-1], side="right"))
    return int(ids[min(place, len(ids) - 1)])
