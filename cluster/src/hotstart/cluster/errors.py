"""What the embedded cluster says when it cannot go on: one sentence with the remedy, printed without a traceback."""

from __future__ import annotations


class ClusterError(Exception):
    """The cluster cannot do what was asked; the text says why and what helps."""
