"""Containerfiles as the tests read them."""

from __future__ import annotations

import re
from pathlib import Path


def read_instructions(containerfile: Path) -> list[tuple[str, str]]:
    """Each instruction with its words, continued lines joined; comments left out."""
    lines = [line for line in containerfile.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]
