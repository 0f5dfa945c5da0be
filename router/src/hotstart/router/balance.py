"""Which pod gets the next request: least outstanding work under a cap. Pure.

Work is counted in tokens, so that a pod with two short requests is preferred to one with a long one. A prompt's prefill
counts too: on a CPU 512 tokens of prefill take as long as 23 of decode (SmolLM2-135M: 729 ms, 32 tokens/s),
about one decoded token for 64 bytes of prompt.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Protocol

PROMPT_BYTES_PER_TOKEN_OF_WORK = 64


class Load(Protocol):
    """What the choice looks at; read only."""

    @property
    def pod(self) -> str: ...
    @property
    def answering(self) -> bool: ...
    @property
    def cap(self) -> int: ...  # most requests at once
    @property
    def requests(self) -> int: ...  # outstanding requests
    @property
    def work(self) -> int: ...  # outstanding work in tokens
    @property
    def picked(self) -> int: ...  # when it was chosen last, by a counter


def request_work(prompt_bytes: int, max_tokens: int) -> int:
    """Work of one request, in tokens; ``prompt_bytes`` is all text that goes in, before and behind the cursor."""
    return max_tokens + prompt_bytes // PROMPT_BYTES_PER_TOKEN_OF_WORK


def decide_pod(loads: Iterable[Load], excluded: Collection[str] = ()) -> str | None:
    """The pod for the next request, or None where each is full, silent or excluded.

    Equal work goes to the fewer requests, then to the one chosen longest ago: two routers that both begin at the first
    name would send all single requests to one pod.
    """
    best: Load | None = None
    for load in loads:
        if not load.answering or load.requests >= load.cap or load.pod in excluded:
            continue
        if best is None or (load.work, load.requests, load.picked) < (best.work, best.requests, best.picked):
            best = load
    return None if best is None else best.pod
