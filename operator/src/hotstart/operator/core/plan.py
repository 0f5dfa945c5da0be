"""What a change of spec costs, said before it is paid: `status.plan`. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from hotstart.engines.key import diff_inputs, key_inputs
from hotstart.operator.api import Engine
from hotstart.operator.api.status import CheckpointStatus
from hotstart.operator.core.facts import PodFacts
from hotstart.operator.core.recipe import WantedEngine
from hotstart.operator.core.revision import Target

SHOWN_DIFFERENCES = 3
FIRST_STEP = "Inspect the checkpoint first"  # a plan that begins so is made again once more is known


def describe_differences(wanted: WantedEngine, digest: str, engines: Iterable[Engine]) -> str:
    """Which part of the key differs from the nearest engine of the namespace; '' where there is none."""
    inputs = key_inputs(digest, wanted.recipe)
    others = [
        diff_inputs(inputs, key_inputs(other.spec.checkpoint_digest, other.spec.recipe.to_engine_recipe()))
        for other in engines
        if other.spec.key != wanted.key
    ]
    nearest = min(others, key=len, default=())
    shown = "; ".join(shorten(text) for text in nearest[:SHOWN_DIFFERENCES])
    return f"{shown}; ..." if len(nearest) > SHOWN_DIFFERENCES else shown


def shorten(text: str) -> str:
    """A difference with its digests cut to 12 digits."""
    return " ".join(word[:12] if len(word) == 64 else word for word in text.removeprefix("recipe.").split(" "))


def make_plan(
    *,
    wanted: WantedEngine | None,
    checkpoint: CheckpointStatus | None,
    target: Target | None,
    pods: Iterable[PodFacts],
    engines: Iterable[Engine],
) -> str:
    """One sentence or two: what is built or reused, and how many pods are replaced."""
    live = [pod for pod in pods if not pod.deleting]
    if wanted is None or checkpoint is None:
        return f"{FIRST_STEP}; {len(live)} pods stay until its engine is known."
    if target is None:
        why = describe_differences(wanted, checkpoint.digest, engines)
        build = f"Build engine {wanted.name[:12]}" + (f" ({why})" if why else " (the first of this namespace)")
        return f"{build}; then {replaced(len(live))}."
    stale = [pod for pod in live if pod.revision != target.revision]
    return f"Reuse engine {wanted.name[:12]}; {replaced(len(stale))}."


def replaced(count: int) -> str:
    """How many pods are replaced, in words."""
    return "no pod is replaced" if count == 0 else "1 pod is replaced" if count == 1 else f"{count} pods are replaced"
